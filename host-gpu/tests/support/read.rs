//! Reading what a sequence says.

use super::wait;
use hob_gpu::{Event, Finish, Logprob, Tokens, Usage};

/// All that a reader gets.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub text: String,
    pub finish: Finish,
    pub logprobs: Vec<Logprob>,
}

/// Reads to the end.
pub fn read(mut tokens: Tokens) -> (Answer, Usage) {
    let mut text = String::new();
    let finish = loop {
        match wait(tokens.next()) {
            Event::Text(more) => text += &more,
            Event::Finished(finish) => break finish,
            Event::Busy { retry_after } => panic!("busy for {retry_after:?}"),
            Event::Fault(why) => panic!("{why}"),
        }
    };
    (Answer { text, finish, logprobs: tokens.take_logprobs() }, tokens.usage())
}
