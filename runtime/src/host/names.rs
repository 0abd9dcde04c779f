//! `wasi:sockets/ip-name-lookup`, 0.2 and 0.3: the addresses of names that a rule of scheme `tcp` allows.
//!
//! The rest of `wasi:sockets` is the stock one, which asks the rules before it connects.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::task::JoinHandle;
use wasmtime::Result;
use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup as two;
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddress, Network};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup as three;
use wasmtime_wasi::p3::bindings::sockets::types;
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};
use wasmtime_wasi_io::streams::Error as IoError;

use super::State;
use super::egress::{NameError, Tcp};

/// The sockets of an instance, borrowed for one call.
pub struct NamesView<'a> {
    table: &'a mut ResourceTable,
    tcp: Option<&'a Arc<Tcp>>,
}

struct Names;

impl HasData for Names {
    type Data<'a> = NamesView<'a>;
}

fn view(state: &mut State) -> NamesView<'_> {
    NamesView { table: &mut state.table, tcp: state.tcp.as_ref() }
}

/// Links it in place of the stock one, which knows only all names or none.
///
/// # Errors
/// None in practice: shadowing is allowed meanwhile.
pub fn link(linker: &mut Linker<State>, concurrent: bool) -> Result<()> {
    linker.allow_shadowing(true);
    two::add_to_linker::<_, Names>(linker, view)?;
    if concurrent {
        three::add_to_linker::<_, Names>(linker, view)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// A lookup under way, or what came of it.
struct Lookup {
    task: Option<JoinHandle<Result<Vec<IpAddr>, NameError>>>,
    found: Result<std::vec::IntoIter<IpAddr>, NameError>,
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Lookup {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(task) = &mut self.task {
            let found = ready!(Pin::new(task).poll(cx));
            self.found = found.unwrap_or(Err(NameError::Unknown)).map(Vec::into_iter);
            self.task = None;
        }
        Poll::Ready(())
    }
}

#[async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}

/// The table keeps our lookups under the handles that the interface's type stands for.
fn own(stream: &Resource<two::ResolveAddressStream>) -> Resource<Lookup> {
    Resource::new_borrow(stream.rep())
}

/// How its errors become the interface's. The interface itself is the stock one.
impl network::Host for NamesView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, _: Resource<IoError>) -> Result<Option<ErrorCode>> {
        Ok(None)
    }
}

impl network::HostNetwork for NamesView<'_> {
    fn drop(&mut self, network: Resource<Network>) -> Result<()> {
        self.table.delete(network)?;
        Ok(())
    }
}

impl two::Host for NamesView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> Result<Resource<two::ResolveAddressStream>, SocketError> {
        self.table.get(&network)?;
        let Some(tcp) = self.tcp.cloned() else { return Err(ErrorCode::AccessDenied.into()) };
        let task = tokio::spawn(async move { tcp.look_up(&name).await });
        let lookup = self.table.push(Lookup { task: Some(task), found: Err(NameError::Unknown) })?;
        Ok(Resource::new_own(lookup.rep()))
    }
}

impl two::HostResolveAddressStream for NamesView<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<two::ResolveAddressStream>,
    ) -> Result<Option<IpAddress>, SocketError> {
        let lookup = self.table.get_mut(&own(&stream))?;
        // A look, not a wait: `subscribe` registers the waker that matters.
        if lookup.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Err(ErrorCode::WouldBlock.into());
        }
        match &mut lookup.found {
            Ok(addresses) => Ok(addresses.next().map(IpAddress::from)),
            Err(NameError::Invalid) => Err(ErrorCode::InvalidArgument.into()),
            Err(NameError::Denied) => Err(ErrorCode::AccessDenied.into()),
            Err(NameError::Unknown) => Err(ErrorCode::NameUnresolvable.into()),
        }
    }

    fn subscribe(&mut self, stream: Resource<two::ResolveAddressStream>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, own(&stream))
    }

    fn drop(&mut self, stream: Resource<two::ResolveAddressStream>) -> Result<()> {
        self.table.delete(Resource::<Lookup>::new_own(stream.rep()))?;
        Ok(())
    }
}

impl three::Host for NamesView<'_> {}

impl<T> three::HostWithStore<T> for Names {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> Result<Result<Vec<types::IpAddress>, three::ErrorCode>> {
        let tcp = store.with(|mut view| view.get().tcp.cloned());
        let Some(tcp) = tcp else { return Ok(Err(three::ErrorCode::AccessDenied)) };
        // In a task of its own: what it needs of this thread is not the guest's.
        Ok(match tokio::spawn(async move { tcp.look_up(&name).await }).await? {
            Ok(addresses) => Ok(addresses.into_iter().map(types::IpAddress::from).collect()),
            Err(NameError::Invalid) => Err(three::ErrorCode::InvalidArgument),
            Err(NameError::Denied) => Err(three::ErrorCode::AccessDenied),
            Err(NameError::Unknown) => Err(three::ErrorCode::NameUnresolvable),
        })
    }
}
