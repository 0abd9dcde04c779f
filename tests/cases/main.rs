//! What hob does, seen from outside. Each case starts a server of its own.

mod budgets;
mod cancel;
mod clients;
mod control;
mod data;
mod deploy;
mod egress;
mod embed;
mod embeddings;
mod examples;
mod gpu;
mod guests;
mod hostile;
mod killed;
mod manifest;
mod mended;
mod middleware;
mod models;
mod observe;
mod ollama;
mod openai;
mod otel;
mod pull;
mod registry;
mod rollout;
mod scripts;
mod serve;
mod server;
mod shares;
mod sockets;
mod streams;
mod usage;
mod worlds;

/// Every program in `guests/` has a case of its name in [`guests`], or this does not compile.
mod every_guest_has_a_case {
    include!(concat!(env!("OUT_DIR"), "/guests.rs"));
}
