//! What templates are filled with.

/// A value, as Go has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A pointer that leads nowhere.
    Null,
    /// A key that a map does not have.
    Missing,
    /// A list that was never made: empty, but `null` in JSON.
    NilList,
    /// A map that was never made.
    NilMap,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Nanoseconds: a number in JSON, `1m30s` elsewhere.
    Duration(i64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// A map or a structure.
    Map(Fields),
    /// A method that takes a name and gives a text, as `.Label "k"` does.
    Lookup(Vec<(String, String)>),
    /// A method that gives back its argument: what heads a column of [`Value::Lookup`].
    Echo,
}

/// How fields are shown, and what happens when one is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A structure: another field is an error.
    Struct,
    /// A map: sorted where it is walked, another key has no value.
    Map,
    /// A row of a listing: a structure whose JSON is safe in HTML, as Go's encoder makes it.
    Row,
}

/// One field.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// It can be asked for, but JSON has it not: a structure's field with its zero value.
    pub hidden: bool,
}

/// Named values, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields {
    /// Map or structure.
    pub shape: Shape,
    /// The values.
    pub list: Vec<Field>,
}

impl Fields {
    /// None yet.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            list: Vec::new(),
        }
    }

    /// Adds a field.
    pub fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.push(name, value.into(), false);
    }

    /// Adds a field that JSON does not have.
    pub fn hide(&mut self, name: &str, value: impl Into<Value>) {
        self.push(name, value.into(), true);
    }

    fn push(&mut self, name: &str, value: Value, hidden: bool) {
        self.list.push(Field {
            name: name.to_owned(),
            value,
            hidden,
        });
    }

    /// The field of a name; of a structure also under Go's spelling of `Id`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let find = |name: &str| {
            let field = self.list.iter().find(|field| field.name == name);
            field.map(|field| &field.value)
        };
        find(name).or_else(|| match name {
            "ID" if self.shape != Shape::Map => find("Id"),
            "Id" if self.shape != Shape::Map => find("ID"),
            _ => None,
        })
    }
}

impl Value {
    /// What Go takes for true: what is neither zero nor empty.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Null | Self::Missing | Self::NilList | Self::NilMap => false,
            Self::Bool(value) => *value,
            Self::Int(value) | Self::Duration(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => !list.is_empty(),
            Self::Map(fields) => fields.shape != Shape::Map || !fields.list.is_empty(),
            Self::Lookup(_) | Self::Echo => true,
        }
    }

    /// What messages call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null | Self::Missing => "nothing",
            Self::NilList | Self::List(_) => "a list",
            Self::NilMap | Self::Map(_) => "a map",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) | Self::Duration(_) => "a number",
            Self::Text(_) => "a text",
            Self::Lookup(_) | Self::Echo => "a method",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<Fields> for Value {
    fn from(fields: Fields) -> Self {
        Self::Map(fields)
    }
}

/// Objects become maps.
impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => number.as_i64().map_or_else(
                || Self::Float(number.as_f64().unwrap_or(f64::NAN)),
                Self::Int,
            ),
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Array(list) => {
                Self::List(list.into_iter().map(Self::from).collect())
            }
            serde_json::Value::Object(map) => {
                let mut fields = Fields::new(Shape::Map);
                for (name, value) in map {
                    fields.push(&name, value.into(), false);
                }
                Self::Map(fields)
            }
        }
    }
}
