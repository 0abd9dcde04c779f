//! What a text means to a model, as a point on a sphere.

use crate::ask::Refusal;
use crate::tokens::{Event, Finish, Tokens, Usage};

/// The embedding of one text, as it is computed: as many numbers as the model is wide, of length 1 together, so that the dot
/// product of two is the cosine between them. A model that is made for this pools its tokens as it was trained to; one that
/// generates gives the state after the last token. Dropping it cancels.
#[must_use = "dropping it cancels the computation"]
pub struct Embedding {
    tokens: Tokens,
}

impl Embedding {
    pub(crate) fn new(tokens: Tokens) -> Self {
        Self { tokens }
    }

    /// Waits for it. Cancel safe: nothing is lost if the future is dropped. A second call gives nothing.
    ///
    /// # Errors
    /// `Busy` or `Fault`, as the events of [`Tokens`]; `Invalid` if its budget did not allow it to the end.
    pub async fn get(&mut self) -> Result<Vec<f32>, Refusal> {
        loop {
            match self.tokens.next().await {
                Event::Text(_) => {}
                Event::Finished(Finish::Budget) => {
                    let why = "the budget of KV memory was used up; give a shorter text, or raise the budget";
                    return Err(Refusal::Invalid(why.into()));
                }
                Event::Finished(_) => return Ok(self.tokens.take_embedding()),
                Event::Busy { retry_after } => return Err(Refusal::Busy { retry_after }),
                Event::Fault(why) => return Err(Refusal::Fault(why)),
            }
        }
    }

    /// What was computed so far.
    pub fn usage(&self) -> Usage {
        self.tokens.usage()
    }
}
