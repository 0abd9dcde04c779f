//! The `handler` attribute of `hob-sdk`, which documents and re-exports it.

#![forbid(unsafe_code)]

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{Error, FnArg, ItemFn, PatType, Result, parse_macro_input, spanned::Spanned};

/// Makes an async function the component's HTTP handler. See `hob_sdk::handler`.
#[proc_macro_attribute]
pub fn handler(arguments: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    expand(arguments.into(), &function).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(arguments: TokenStream, function: &ItemFn) -> Result<TokenStream> {
    check(&arguments, function)?;
    let name = &function.sig.ident;
    let serve = match function.sig.inputs.is_empty() {
        true => quote!(serve_any),
        false => quote!(serve),
    };
    let call = match function.sig.inputs.first() {
        None => quote!(#name().await),
        // The span puts "FromRequest is not implemented" under the type that the author wrote.
        Some(FnArg::Typed(PatType { ty, .. })) => quote_spanned! { ty.span() =>
            match <#ty as ::hob_sdk::FromRequest>::from_request(request).await {
                ::core::result::Result::Ok(input) => #name(input).await,
                ::core::result::Result::Err(error) => return ::hob_sdk::IntoResponse::into_response(error),
            }
        },
        Some(receiver) => return Err(Error::new_spanned(receiver, "a handler is a free function")),
    };
    Ok(quote! {
        #function

        #[doc(hidden)]
        mod __hob_component {
            use ::hob_sdk::__private::{IncomingRequest, ResponseOutparam, #serve, wasip2};

            struct Component;

            impl wasip2::exports::http::incoming_handler::Guest for Component {
                fn handle(request: IncomingRequest, out: ResponseOutparam) {
                    #serve(request, out, super::__hob_reply)
                }
            }

            wasip2::http::proxy::export!(Component with_types_in wasip2);
        }

        #[doc(hidden)]
        #[allow(unused_variables, clippy::unit_arg, clippy::needless_return)]
        async fn __hob_reply(request: ::hob_sdk::Request) -> ::hob_sdk::Response {
            ::hob_sdk::IntoResponse::into_response(#call)
        }
    })
}

fn check(arguments: &TokenStream, function: &ItemFn) -> Result<()> {
    let signature = &function.sig;
    if !arguments.is_empty() {
        return Err(Error::new_spanned(arguments, "`handler` takes no arguments"));
    }
    if signature.asyncness.is_none() {
        return Err(Error::new(signature.fn_token.span, "a handler is an `async fn`"));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new_spanned(&signature.generics, "a handler cannot be generic"));
    }
    if signature.inputs.len() > 1 {
        return Err(Error::new_spanned(
            &signature.inputs,
            "a handler takes at most one argument: `Request`, or what `FromRequest` makes of it, such as `Json<T>`",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    fn refusal(function: ItemFn) -> String {
        expand(TokenStream::new(), &function).expect_err("refused").to_string()
    }

    #[test]
    fn takes_none_or_one_argument() {
        assert!(
            expand(
                TokenStream::new(),
                &parse_quote!(
                    async fn hello() -> &'static str {
                        ""
                    }
                )
            )
            .is_ok()
        );
        assert!(
            expand(
                TokenStream::new(),
                &parse_quote!(
                    async fn hello(request: Request) {}
                )
            )
            .is_ok()
        );
        assert!(
            refusal(parse_quote!(
                async fn hello(a: Request, b: u8) {}
            ))
            .contains("at most one argument")
        );
    }

    #[test]
    fn says_what_is_wrong() {
        assert!(
            refusal(parse_quote!(
                fn hello() {}
            ))
            .contains("async fn")
        );
        assert!(
            refusal(parse_quote!(
                async fn hello<T>(a: T) {}
            ))
            .contains("generic")
        );
        assert!(
            refusal(parse_quote!(
                async fn hello(&self) {}
            ))
            .contains("free function")
        );
        assert!(
            expand(
                quote!(route = "/"),
                &parse_quote!(
                    async fn hello() {}
                )
            )
            .is_err()
        );
    }
}
