//! Middleware: components that take a request and hand it on to the next, made into one component with the handler at
//! their end (`wasi:http/middleware` and `wasi:http/service`, WASI 0.3).
//!
//! That is done once, when a function is deployed: what is compiled, cached and called is one component like any other.
//! Its parts share nothing but the requests and answers that pass: each has memory of its own.

use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions, NodeId, PackageId};

/// Most components of middleware before a handler.
pub const MOST: usize = 16;

/// The interface that they pass requests through, whichever 0.3 it is.
const HANDLER: &str = "wasi:http/handler@0.3.";

/// Why components make no chain. All final: other components are needed.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// It passes nothing on.
    #[error(
        "{0} is no middleware: it imports no wasi:http/handler@0.3 to hand requests on to; deploy it as a component of its own"
    )]
    PassesNothingOn(String),
    /// It takes no requests that middleware can hand on.
    #[error("{0} takes no requests from middleware: it exports no wasi:http/handler@0.3; build it for WASI 0.3")]
    TakesNothing(String),
    /// The handler at the end hands requests on, and there is nothing behind it.
    #[error(
        "{0} is middleware itself, and no handler comes after it; name it under `middleware`, and a handler as the component"
    )]
    NoEnd(String),
    /// It is damaged, or of another kind.
    #[error("{name} cannot be put into a chain: {why}")]
    Invalid {
        /// The component.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// There are too many.
    #[error("{0} components of middleware; at most {MOST} can stand before a handler")]
    TooMany(usize),
}

/// A component of a chain, under the name that it is spoken of.
pub struct Part {
    /// For messages.
    pub name: String,
    /// The component.
    pub bytes: Vec<u8>,
}

/// Makes one component of `middleware`, the outermost first, and the `handler` behind it. The same parts make the same
/// bytes.
///
/// # Errors
/// See [`ComposeError`].
pub fn chain(middleware: Vec<Part>, handler: Part) -> Result<Vec<u8>, ComposeError> {
    if middleware.len() > MOST {
        return Err(ComposeError::TooMany(middleware.len()));
    }
    let mut graph = CompositionGraph::new();
    let handler = Link::register(&mut graph, 0, handler)?;
    if handler.import.is_some() {
        return Err(ComposeError::NoEnd(handler.name));
    }
    let instance = graph.instantiate(handler.package);
    let mut next = handler.exported(&mut graph, instance)?;
    let mut outermost = handler.export;
    for (n, part) in middleware.into_iter().enumerate().rev() {
        let link = Link::register(&mut graph, n + 1, part)?;
        let Some(import) = &link.import else { return Err(ComposeError::PassesNothingOn(link.name)) };
        let instance = graph.instantiate(link.package);
        graph.set_instantiation_argument(instance, import, next).map_err(|error| link.invalid(&error.into()))?;
        next = link.exported(&mut graph, instance)?;
        outermost = link.export;
    }
    let whole = |why: String| ComposeError::Invalid { name: "the chain".into(), why };
    graph.export(next, outermost).map_err(|error| whole(error.to_string()))?;
    graph.encode(EncodeOptions::default()).map_err(|error| whole(causes(&error.into())))
}

/// A part that was looked at.
struct Link {
    name: String,
    package: PackageId,
    /// By what it imports the next handler.
    import: Option<String>,
    /// By what it is a handler itself.
    export: String,
}

impl Link {
    fn register(graph: &mut CompositionGraph, n: usize, part: Part) -> Result<Self, ComposeError> {
        let Part { name, bytes } = part;
        let invalid = |why| ComposeError::Invalid { name: name.clone(), why };
        // The same component may stand in a chain twice: its place tells it apart.
        let package = Package::from_bytes(&format!("hob:part-{n}"), None, bytes, graph.types_mut())
            .map_err(|error| invalid(causes(&error)))?;
        let world = &graph.types()[package.ty()];
        let (import, export) = (handler_of(world.imports.keys()), handler_of(world.exports.keys()));
        let Some(export) = export else { return Err(ComposeError::TakesNothing(name)) };
        let package = graph.register_package(package).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { name, package, import, export })
    }

    /// The handler of an instance.
    fn exported(&self, graph: &mut CompositionGraph, instance: NodeId) -> Result<NodeId, ComposeError> {
        graph.alias_instance_export(instance, &self.export).map_err(|error| self.invalid(&error.into()))
    }

    fn invalid(&self, error: &anyhow::Error) -> ComposeError {
        ComposeError::Invalid { name: self.name.clone(), why: causes(error) }
    }
}

fn handler_of<'a>(mut names: impl Iterator<Item = &'a String>) -> Option<String> {
    names.find(|name| name.starts_with(HANDLER)).cloned()
}

fn causes(error: &anyhow::Error) -> String {
    format!("{error:#}")
}
