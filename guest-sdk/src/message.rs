//! Turns of a conversation, in the shape that chat clients send: `{"role":"user","content":"Hello"}`.

use crate::bindings;
use serde::{Deserialize, Serialize};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said, as plain text. Special tokens written here are read as text, not obeyed.
    pub content: String,
}

/// Who says a message; in JSON `"system"`, `"user"` or `"assistant"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that frame the whole conversation; usually the first message.
    System,
    /// The person, or whatever asks.
    User,
    /// The model's own earlier answers.
    Assistant,
}

impl Message {
    /// Instructions that frame the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// What the model said before.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

impl From<Message> for bindings::Message {
    fn from(message: Message) -> Self {
        let role = match message.role {
            Role::System => bindings::Role::System,
            Role::User => bindings::Role::User,
            Role::Assistant => bindings::Role::Assistant,
        };
        Self { role, content: message.content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_shape_that_clients_send() {
        let text = r#"{"role":"assistant","content":"Hello"}"#;
        let message = Message::assistant("Hello");
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(serde_json::from_str::<Message>(text).unwrap(), message);
    }
}
