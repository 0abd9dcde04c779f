//! What a model writes, told apart: text for people, thoughts, and calls of tools, as the pieces come.

use hob_gpu::model::template::{CallStyle, Marks};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// For people.
    Text(String),
    /// What the model thinks before it answers.
    Thought(String),
    /// A call of this tool begins.
    Call(String),
    /// More of its arguments, JSON.
    Arguments(String),
}

/// Reads one answer.
#[derive(Debug)]
pub(super) struct Reader {
    marks: Marks,
    /// Calls are looked for.
    calls: bool,
    state: State,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but space so far: a thought may begin.
    Start,
    Thought,
    /// After a thought: the lines between it and the text are of no use.
    After,
    Text,
    /// Before the name of the tool that is called.
    Name,
    /// Within its arguments, so deep in brackets.
    Arguments(Depth),
    /// After them.
    CallEnd,
}

/// Where a piece of JSON stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Depth {
    brackets: u32,
    in_text: bool,
    escaped: bool,
}

impl Reader {
    /// For a model with these marks. `in_thought`: its prompt ended where a thought begins. `calls`: it was given tools.
    pub fn new(marks: Marks, in_thought: bool, calls: bool) -> Self {
        let state = match (in_thought, marks.thinks || calls) {
            (true, _) => State::Thought,
            (false, true) => State::Start,
            (false, false) => State::Text,
        };
        Self { marks, calls, state, held: String::new() }
    }

    /// For text that is nothing but text.
    pub fn plain() -> Self {
        Self::new(
            Marks {
                thought: ("", ""),
                thinks: false,
                can_choose_to_think: false,
                calls: CallStyle::Tagged,
                call: ("", ""),
                has_tools: false,
            },
            false,
            false,
        )
    }

    /// Whether it is within a thought.
    pub fn thinks(&self) -> bool {
        self.state == State::Thought
    }

    /// The pieces that are certain once `text` has come.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    /// The rest, when nothing more comes.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Thought => give(out, Piece::Thought(rest)),
            State::Start | State::Text if !rest.is_empty() => give(out, Piece::Text(rest)),
            // What was to be a call and is none is shown, not lost.
            State::Name => give(out, Piece::Text(rest)),
            _ => {}
        }
    }

    /// Reads on; `false` if more must come first.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Thought => {
                if self.until(self.marks.thought.1, out, Piece::Thought) {
                    self.state = State::After;
                    return true;
                }
                false
            }
            State::After => {
                self.held.drain(..self.held.len() - self.held.trim_start().len());
                if !self.held.is_empty() {
                    self.state = if self.is_bare_call() { State::Name } else { State::Text };
                }
                !self.held.is_empty()
            }
            State::Text if self.calls && self.marks.calls == CallStyle::Tagged => {
                if self.until(self.marks.call.0, out, Piece::Text) {
                    self.state = State::Name;
                    return true;
                }
                false
            }
            State::Text => {
                let text = std::mem::take(&mut self.held);
                give(out, Piece::Text(text));
                false
            }
            State::Name => self.name(out),
            State::Arguments(depth) => self.arguments(depth, out),
            State::CallEnd => self.call_end(),
        }
    }

    fn start(&mut self) -> bool {
        let said = self.held.trim_start();
        let open = self.marks.thought.0;
        if said.is_empty() || self.marks.thinks && open.starts_with(said) && said.len() < open.len() {
            return false;
        }
        if self.marks.thinks && said.starts_with(open) {
            let at = self.held.len() - said.len() + open.len();
            self.held.drain(..at);
            self.state = State::Thought;
        } else {
            self.state = if self.is_bare_call() { State::Name } else { State::Text };
        }
        true
    }

    fn is_bare_call(&self) -> bool {
        self.calls && self.marks.calls == CallStyle::Bare && self.held.trim_start().starts_with('{')
    }

    /// Gives out what comes before `mark`; `true` once it is there.
    fn until(&mut self, mark: &str, out: &mut Vec<Piece>, piece: fn(String) -> Piece) -> bool {
        if let Some(at) = self.held.find(mark) {
            let rest = self.held.split_off(at);
            let before = std::mem::replace(&mut self.held, rest[mark.len()..].to_owned());
            let is_text = self.state == State::Text;
            // A line end before a call belongs to the call.
            let before = if is_text { before.trim_end().to_owned() } else { before };
            give(out, piece(before));
            return true;
        }
        let longest = self.held.len().min(mark.len() - 1);
        let keep = (1..=longest).rev().find(|n| self.held.ends_with(&mark[..*n])).unwrap_or(0);
        // Spaces may be those before a mark.
        let safe = self.held[..self.held.len() - keep].trim_end().len();
        let rest = self.held.split_off(safe);
        let before = std::mem::replace(&mut self.held, rest);
        give(out, piece(before));
        false
    }

    /// Reads `{"name": "...", "arguments": `.
    fn name(&mut self, out: &mut Vec<Piece>) -> bool {
        let Some((name, rest)) = name_and_rest(&self.held) else { return false };
        let (name, rest) = (name.to_owned(), rest.to_owned());
        give(out, Piece::Call(name));
        self.held = rest;
        self.state = State::Arguments(Depth::default());
        true
    }

    fn arguments(&mut self, mut depth: Depth, out: &mut Vec<Piece>) -> bool {
        for (at, byte) in self.held.bytes().enumerate() {
            if depth.ends_with(byte) {
                let rest = self.held.split_off(at + 1);
                give(out, Piece::Arguments(std::mem::replace(&mut self.held, rest)));
                self.state = State::CallEnd;
                return true;
            }
        }
        self.state = State::Arguments(depth);
        give(out, Piece::Arguments(std::mem::take(&mut self.held)));
        false
    }

    /// Skips the closing bracket and the closing mark.
    fn call_end(&mut self) -> bool {
        let close = match self.marks.calls {
            CallStyle::Tagged => self.marks.call.1,
            CallStyle::Bare => "}",
        };
        match self.held.find(close) {
            Some(at) => {
                self.held.drain(..at + close.len());
                self.state = State::After;
                true
            }
            None => false,
        }
    }
}

impl Depth {
    /// Whether the value ends with this byte of it.
    fn ends_with(&mut self, byte: u8) -> bool {
        match (self.in_text, byte) {
            (true, _) if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (_, b'"') => self.in_text = !self.in_text,
            (false, b'{' | b'[') => self.brackets += 1,
            (false, b'}' | b']') => {
                self.brackets = self.brackets.saturating_sub(1);
                return self.brackets == 0;
            }
            _ => {}
        }
        false
    }
}

/// The tool's name, and what follows the key of its arguments.
fn name_and_rest(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once("\"name\"")?;
    let (_, rest) = rest.split_once('"')?;
    let (name, rest) = rest.split_once('"')?;
    let (_, rest) = rest.split_once("\"arguments\"").or_else(|| rest.split_once("\"parameters\""))?;
    let (_, rest) = rest.split_once(':')?;
    let rest = rest.trim_start();
    rest.starts_with('{').then_some((name, rest))
}

/// Adds a piece to what came before, if it says something.
fn give(out: &mut Vec<Piece>, piece: Piece) {
    use Piece::{Arguments, Call, Text, Thought};
    match (out.last_mut(), piece) {
        (_, Text(more) | Thought(more) | Arguments(more)) if more.is_empty() => {}
        (Some(Text(before)), Text(more))
        | (Some(Thought(before)), Thought(more))
        | (Some(Arguments(before)), Arguments(more)) => before.push_str(&more),
        (_, piece @ (Text(_) | Thought(_) | Arguments(_) | Call(_))) => out.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks = Marks {
        thought: ("<think>", "</think>"),
        thinks: true,
        can_choose_to_think: false,
        calls: CallStyle::Tagged,
        call: ("<tool_call>", "</tool_call>"),
        has_tools: true,
    };

    /// What all cuts of `text` must come to.
    fn read(marks: Marks, in_thought: bool, calls: bool, text: &str) -> Vec<Piece> {
        let whole = cut(marks, in_thought, calls, text, text.chars().count());
        for size in 1..6 {
            assert_eq!(cut(marks, in_thought, calls, text, size), whole, "in pieces of {size}");
        }
        whole
    }

    fn cut(marks: Marks, in_thought: bool, calls: bool, text: &str, size: usize) -> Vec<Piece> {
        let (mut reader, mut out) = (Reader::new(marks, in_thought, calls), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        chars.chunks(size.max(1)).for_each(|part| reader.push(&part.iter().collect::<String>(), &mut out));
        reader.finish(&mut out);
        out
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    #[test]
    fn thoughts_come_apart() {
        let thought = Piece::Thought("a < b".into());
        assert_eq!(read(MARKS, false, false, "\n<think>a < b</think>\n\nyes <b>"), [thought.clone(), text("yes <b>")]);
        assert_eq!(read(MARKS, true, false, "a < b</think>yes"), [thought.clone(), text("yes")]);
        assert_eq!(read(MARKS, true, false, "a < b"), [thought], "cut off while it thinks");
        assert_eq!(read(MARKS, false, false, "<thin ice"), [text("<thin ice")]);
        assert!(read(MARKS, false, false, "").is_empty());
        let plain = Marks { thinks: false, ..MARKS };
        assert_eq!(read(plain, false, false, " <think>x"), [text(" <think>x")]);
    }

    #[test]
    fn calls_come_apart() {
        let said = "Let me see.\n<tool_call>\n{\"name\": \"time\", \"arguments\": {\"in\": \"R}o\\\"me\", \"x\": [{}]}}\n</tool_call>\n\
                    <tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";
        let call = |name: &str, arguments: &str| [Piece::Call(name.into()), Piece::Arguments(arguments.into())];
        let want =
            [&[text("Let me see.")][..], &call("time", "{\"in\": \"R}o\\\"me\", \"x\": [{}]}"), &call("b", "{}")]
                .concat();
        assert_eq!(read(MARKS, false, true, said), want);
        assert_eq!(read(MARKS, false, false, "<tool_call>x"), [text("<tool_call>x")], "nobody gave it tools");
        let bare = Marks { calls: CallStyle::Bare, ..MARKS };
        let said = "{\"name\": \"time\", \"parameters\": {\"in\": \"Rome\"}}";
        assert_eq!(read(bare, false, true, said), call("time", "{\"in\": \"Rome\"}"));
        assert_eq!(read(bare, false, true, "It is {late}."), [text("It is {late}.")]);
        assert_eq!(read(MARKS, false, true, "<tool_call>\n{\"na"), [text("\n{\"na")], "cut off");
    }
}
