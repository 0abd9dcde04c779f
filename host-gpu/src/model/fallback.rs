//! Chat templates for files that have none: found by the marks of turns that are in the vocabulary.

/// Marks that are all special tokens of a family's vocabularies, and how its turns are written.
const TEMPLATES: &[(&[&str], &str)] = &[
    (
        &["<|start_header_id|>", "<|eot_id|>"],
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content ~ \
         '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\
         {% endif %}",
    ),
    (
        &["<|im_start|>", "<|im_end|>"],
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        &["<start_of_turn>", "<end_of_turn>"],
        "{{ bos_token }}{% set before = namespace(text='') %}{% for m in messages %}{% if m.role == 'system' %}\
         {% set before.text = m.content ~ '\n\n' %}{% else %}{{ '<start_of_turn>' ~ \
         ('model' if m.role == 'assistant' else 'user') ~ '\n' ~ before.text ~ m.content ~ '<end_of_turn>\n' }}\
         {% set before.text = '' %}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ),
    (
        &["<|user|>", "<|assistant|>", "<|end|>"],
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ),
];

/// The template of the family whose marks are all special tokens.
pub(super) fn for_vocabulary(is_special: impl Fn(&str) -> bool) -> Option<&'static str> {
    let known = TEMPLATES.iter().find(|(marks, _)| marks.iter().all(|mark| is_special(mark)));
    known.map(|(_, template)| *template)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::{Message, Role};
    use crate::model::template::Template;

    #[test]
    fn every_fallback_writes_turns_and_asks_for_the_next() {
        for (marks, source) in TEMPLATES {
            assert_eq!(for_vocabulary(|mark| marks.contains(&mark)), Some(*source));
            let template = Template::with(source, "<s>".into(), "</s>".into(), true).unwrap();
            let say = |role, content: &str| Message { role, content: content.into() };
            let said = vec![say(Role::System, "be brief"), say(Role::User, "hello")];
            let text = template.render(&said.into()).unwrap();
            assert!(text.contains("be brief") && text.contains("hello") && text.contains(marks[0]), "{text}");
            let answers = ["assistant<|end_header_id|>\n\n", "assistant\n", "model\n", "<|assistant|>\n"];
            assert!(answers.iter().any(|end| text.ends_with(end)), "{text}");
        }
        assert_eq!(for_vocabulary(|_| false), None);
    }
}
