//! Filling in a template.

use std::borrow::Cow;

use crate::Fault;
use crate::functions;
use crate::parse::{Node, Operand, OperandKind, Pipe};
use crate::print::show;
use crate::value::{Shape, Value};

pub(crate) fn render(nodes: &[Node], root: &Value) -> Result<String, Fault> {
    let mut state = State {
        out: String::new(),
        // Go's `$` is what the template was given.
        variables: vec![(String::new(), root.clone())],
    };
    state.nodes(nodes, root)?;
    Ok(state.out)
}

/// Whether a loop goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct State {
    out: String,
    /// The newest last.
    variables: Vec<(String, Value)>,
}

impl State {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, Fault> {
        let known = self.variables.len();
        for node in nodes {
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                self.variables.truncate(known);
                return Ok(flow);
            }
        }
        self.variables.truncate(known);
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, Fault> {
        let known = self.variables.len();
        let flow = match node {
            Node::Text(text) => {
                self.out.push_str(text);
                return Ok(Flow::On);
            }
            Node::Print(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if pipe.variables.is_empty() {
                    self.out.push_str(&show(&value));
                }
                // What it declares lives as long as the block.
                return Ok(Flow::On);
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::If {
                condition,
                then,
                otherwise,
            } => {
                let value = self.pipe(condition, dot)?;
                self.nodes(if value.is_true() { then } else { otherwise }, dot)
            }
            Node::With {
                value,
                body,
                otherwise,
            } => {
                let value = self.pipe(value, dot)?;
                if value.is_true() {
                    self.nodes(body, &value)
                } else {
                    self.nodes(otherwise, dot)
                }
            }
            Node::Range {
                over,
                body,
                otherwise,
            } => self.range(over, body, otherwise, dot),
        }?;
        self.variables.truncate(known);
        Ok(flow)
    }

    fn range(
        &mut self,
        over: &Pipe,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Flow, Fault> {
        let value = self.commands(over, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Null | Value::Missing | Value::NilList | Value::NilMap => Vec::new(),
            Value::List(list) => (0..).map(Value::Int).zip(list).collect(),
            Value::Int(count) => (0..count.max(0))
                .map(|number| (Value::Int(number), Value::Int(number)))
                .collect(),
            Value::Map(mut fields) if fields.shape == Shape::Map => {
                fields
                    .list
                    .sort_by(|left, right| left.name.cmp(&right.name));
                let pair = |field: crate::Field| (Value::Text(field.name), field.value);
                fields.list.into_iter().map(pair).collect()
            }
            other => {
                let text = format!("range goes over lists and maps, this is {}", other.kind());
                return Err(Fault::new(over.at, text));
            }
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (index, item) in items {
            let known = self.variables.len();
            match &over.variables[..] {
                [] => {}
                [element] => self.set(element, item.clone(), over)?,
                [number, element, ..] => {
                    self.set(number, index, over)?;
                    self.set(element, item.clone(), over)?;
                }
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(known);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn set(&mut self, name: &str, value: Value, pipe: &Pipe) -> Result<(), Fault> {
        if !pipe.assigns {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        let found = self
            .variables
            .iter_mut()
            .rev()
            .find(|(known, _)| known == name);
        let Some((_, place)) = found else {
            return Err(Fault::new(
                pipe.at,
                format!("there is no variable ${name}: declare it with :="),
            ));
        };
        *place = value;
        Ok(())
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Fault> {
        let value = self.commands(pipe, dot)?;
        for name in &pipe.variables {
            self.set(name, value.clone(), pipe)?;
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Fault> {
        let mut value = None;
        for command in &pipe.commands {
            value = Some(self.command(command, value, dot)?);
        }
        Ok(value.unwrap_or(Value::Missing))
    }

    /// `last` comes through the pipe, as the last argument.
    fn command(
        &mut self,
        command: &[Operand],
        last: Option<Value>,
        dot: &Value,
    ) -> Result<Value, Fault> {
        let Some((first, rest)) = command.split_first() else {
            return Ok(Value::Missing);
        };
        if let OperandKind::Function(name) = &first.kind {
            // These two look at no more than they need.
            if let "and" | "or" = name.as_str() {
                let mut value = None;
                for operand in rest {
                    let this = self.operand(operand, dot)?;
                    let done = this.is_true() == (name == "or");
                    value = Some(this);
                    if done {
                        return Ok(value.unwrap_or(Value::Missing));
                    }
                }
                return last
                    .or(value)
                    .ok_or_else(|| Fault::new(first.at, format!("{name} takes arguments")));
            }
            let mut arguments = Vec::new();
            for operand in rest {
                arguments.push(self.operand(operand, dot)?);
            }
            arguments.extend(last);
            return functions::call(name, &arguments)
                .map_err(|message| Fault::new(first.at, format!("{name}: {message}")));
        }
        let value = self.operand(first, dot)?;
        let argument = match rest {
            [] => last,
            [operand] if last.is_none() => Some(self.operand(operand, dot)?),
            [more, ..] => return Err(Fault::new(more.at, "one argument at most is taken here")),
        };
        match (value, argument) {
            (Value::Lookup(pairs), Some(Value::Text(name))) => {
                let found = pairs.into_iter().find(|(known, _)| *known == name);
                Ok(Value::Text(
                    found.map_or_else(String::new, |(_, text)| text),
                ))
            }
            (Value::Echo, Some(argument)) => Ok(argument),
            (Value::Lookup(_) | Value::Echo, _) => Err(Fault::new(
                first.at,
                "a name is missing, as in .Label \"name\"",
            )),
            (value, None) => Ok(value),
            (_, Some(_)) => Err(Fault::new(
                first.at,
                "it is no function: it takes no arguments",
            )),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, Fault> {
        Ok(match &operand.kind {
            OperandKind::Dot => dot.clone(),
            OperandKind::Nil => Value::Null,
            OperandKind::Bool(value) => Value::Bool(*value),
            OperandKind::Int(value) => Value::Int(*value),
            OperandKind::Float(value) => Value::Float(*value),
            OperandKind::Text(text) => Value::Text(text.clone()),
            OperandKind::Variable(name) => self.variable(name, operand.at)?.clone(),
            // A function without arguments as an argument.
            OperandKind::Function(name) => functions::call(name, &[])
                .map_err(|message| Fault::new(operand.at, format!("{name}: {message}")))?,
            OperandKind::Pipe(pipe) => self.pipe(pipe, dot)?,
            OperandKind::Chain(base, names) => {
                let base = match &base.kind {
                    OperandKind::Dot => Cow::Borrowed(dot),
                    _ => Cow::Owned(self.operand(base, dot)?),
                };
                fields(&base, names, operand.at)?
            }
        })
    }

    fn variable(&self, name: &str, at: usize) -> Result<&Value, Fault> {
        let mut newest = self.variables.iter().rev();
        let found = newest.find(|(known, _)| known == name);
        found
            .map(|(_, value)| value)
            .ok_or_else(|| Fault::new(at, format!("there is no variable ${name}")))
    }
}

fn fields(base: &Value, names: &[String], at: usize) -> Result<Value, Fault> {
    let mut value = base;
    for name in names {
        value = match value {
            Value::Map(map) => match map.get(name) {
                Some(value) => value,
                None if map.shape == Shape::Map => return Ok(Value::Missing),
                None => {
                    let known: Vec<_> = map.list.iter().map(|field| &*field.name).collect();
                    let text = format!("there is no field {name}; there are {}", known.join(", "));
                    return Err(Fault::new(at, text));
                }
            },
            Value::NilMap | Value::Missing => return Ok(Value::Missing),
            Value::Null => {
                return Err(Fault::new(
                    at,
                    format!("there is nothing that could have a field {name}"),
                ));
            }
            other => {
                let text = format!("{} has no fields, so no {name}", other.kind());
                return Err(Fault::new(at, text));
            }
        };
    }
    Ok(value.clone())
}
