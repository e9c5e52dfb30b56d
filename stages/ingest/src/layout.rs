//! From elements to lines of text, as a browser without pictures would show them: one paragraph, heading, list item or
//! table row a line; `- ` before an item, ` | ` between cells; white space folded except in `pre`.

use dom_query::{Document, NodeRef};

/// The text of a document or a fragment: no blank lines, none at the ends. Calls itself for each level of elements.
pub(crate) fn text(document: &Document) -> String {
    let mut out = Lines::default();
    write(document.root(), &mut out);
    out.finish()
}

fn write(node: NodeRef<'_>, out: &mut Lines) {
    if node.is_text() {
        return out.text(&node.text());
    }
    // A document and a comment have no name.
    let name = node.node_name().filter(|_| node.is_element());
    let name = name.as_deref().unwrap_or_default();
    let is_block = BLOCKS.contains(&name);
    match name {
        _ if HIDDEN.contains(&name) => return,
        "br" => out.end_line(),
        "td" | "th" => out.cell(),
        "li" => out.item(),
        "pre" | "textarea" | "listing" => {
            out.block();
            out.pre += 1;
        }
        _ if is_block => out.block(),
        _ => {}
    }
    node.children_it(false).for_each(|child| write(child, out));
    match name {
        "li" => out.end_line(),
        "pre" | "textarea" | "listing" => {
            out.block();
            out.pre -= 1;
        }
        _ if is_block => out.block(),
        _ => {}
    }
}

/// A text that has lines already: white space folded, blank lines left out.
pub(crate) fn lines(text: &str) -> String {
    let mut out = Lines::default();
    for line in text.lines() {
        out.text(line);
        out.end_line();
    }
    out.finish()
}

/// Elements that show no text.
const HIDDEN: [&str; 9] = ["script", "style", "noscript", "template", "head", "svg", "math", "iframe", "object"];

/// Elements that begin and end a line.
#[rustfmt::skip]
const BLOCKS: [&str; 46] = [
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "dir", "div",
    "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hgroup", "hr", "html", "legend", "main", "menu", "nav", "ol", "option", "p", "search", "section", "select",
    "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
];

/// Lines so far; the last one may be unfinished.
#[derive(Default)]
struct Lines {
    text: String,
    /// Where the unfinished line begins.
    start: usize,
    /// White space was seen, and a character comes before it in the line.
    is_apart: bool,
    /// Set before the next text of the line.
    lead: Option<&'static str>,
    /// How many `pre` are open.
    pre: usize,
}

impl Lines {
    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '\n' | '\r' if self.pre > 0 => self.end_line(),
                _ if self.pre > 0 => self.put(c),
                ' ' | '\t' | '\n' | '\r' | '\x0c' | '\u{a0}' => self.is_apart = true,
                '\u{ad}' | '\u{200b}' | '\u{feff}' | '\0' => {} // they show nothing
                _ => self.put(c),
            }
        }
    }

    fn put(&mut self, c: char) {
        let is_first = self.text.len() == self.start;
        match self.lead.take() {
            Some(lead) => self.text.push_str(if is_first { lead.trim_start() } else { lead }),
            None if self.is_apart && !is_first => self.text.push(' '),
            None => {}
        }
        self.is_apart = false;
        self.text.push(c);
    }

    fn end_line(&mut self) {
        let end = self.text[self.start..].trim_end().len() + self.start;
        self.text.truncate(end);
        if end > self.start {
            self.text.push('\n');
        }
        self.start = self.text.len();
        (self.is_apart, self.lead) = (false, None);
    }

    /// Where a block begins or ends. An item's mark waits for its first text, even inside a block.
    fn block(&mut self) {
        let lead = self.lead.filter(|lead| *lead == ITEM && self.text.len() == self.start);
        self.end_line();
        self.lead = lead;
    }

    fn cell(&mut self) {
        if self.text.len() > self.start {
            self.lead = Some(CELL);
        }
    }

    fn item(&mut self) {
        self.end_line();
        self.lead = Some(ITEM);
    }

    fn finish(mut self) -> String {
        self.end_line();
        self.text.truncate(self.text.trim_end().len());
        self.text
    }
}

const ITEM: &str = "- ";
const CELL: &str = " | ";

#[cfg(test)]
mod tests {
    use super::*;

    fn of(html: &str) -> String {
        text(&Document::fragment(html))
    }

    #[test]
    fn blocks_are_lines_and_what_stands_in_a_line_is_not() {
        assert_eq!(of("<p>one <b>two</b>\n\tthree<br>four</p>five<div>six</div>"), "one two three\nfour\nfive\nsix");
        assert_eq!(of("<h1> A\u{a0}title </h1>\n\n<p></p><p>a<i>b</i>c<script>x</script></p>"), "A title\nabc");
        assert_eq!(of("so\u{ad}far"), "sofar");
    }

    #[test]
    fn items_and_cells_have_marks() {
        assert_eq!(of("<ul><li>one</li><li><p>two</p><p>more</p></li><li></li></ul>end"), "- one\n- two\nmore\nend");
        assert_eq!(of("<ol><li>a<ul><li>b</li></ul></li></ol>"), "- a\n- b");
        let table = "<table><tr><th>a</th><th>b</th></tr><tr><td>1 <td></td><td>2</td></tr></table>";
        assert_eq!(of(table), "a | b\n1 | 2");
    }

    #[test]
    fn code_keeps_its_lines() {
        assert_eq!(of("<p>x</p><pre>\nfn f() {\n    <b>g</b>(1);\n}\n</pre><p>y</p>"), "x\nfn f() {\n    g(1);\n}\ny");
        assert_eq!(of("a <code>b  c</code>"), "a b c");
    }

    #[test]
    fn lines_of_a_text_are_folded() {
        assert_eq!(lines("  a  b \n\n\n c\r\n"), "a b\nc");
    }

    #[test]
    fn a_deep_page_is_written() {
        let deep = format!("{}x", "<div>".repeat(500));
        assert_eq!(of(&deep), "x");
    }
}
