//! The text of one manifest file to Kubernetes objects: documents, lists, defaults, and the line of
//! whatever is wrong.
//!
//! Pure: it knows neither the file system nor other files. Entry point: [`parse`].

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::mirror::mirror;
use super::{Object, ObjectKind, defaults};

const DEFAULT_NAMESPACE: &str = "default";

/// What one file says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Contents {
    pub(super) entries: Vec<Entry>,
    /// Objects of kinds that a service proxy has no use for.
    pub(super) n_ignored: usize,
}

impl Contents {
    /// Objects that a server has sent, so that nothing is to be filled in.
    pub(super) fn of(objects: Vec<Object>) -> Self {
        let entry = |object: Object| {
            let kind = match object.key().kind {
                ObjectKind::Service => Kind::Service,
                ObjectKind::EndpointSlice => Kind::EndpointSlice,
                ObjectKind::Node => Kind::Node,
                ObjectKind::ServiceCidr => Kind::ServiceCidr,
            };
            let meta = object.metadata();
            let id = kind.id(
                meta.namespace.as_deref(),
                meta.name.as_deref().unwrap_or_default(),
            );
            Entry {
                line: 1,
                id,
                item: Item::Object(Arc::new(object)),
            }
        };
        Self {
            entries: objects.into_iter().map(entry).collect(),
            n_ignored: 0,
        }
    }
}

/// One object of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    /// Where its document starts; the objects of a list share that line.
    pub(super) line: usize,
    pub(super) id: Id,
    pub(super) item: Item,
}

/// What an object of a file means to the proxy.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    Object(Arc<Object>),
    /// The EndpointSlices a v1 Endpoints stands for, if its Service has no selector.
    Endpoints(Vec<Arc<Object>>),
}

/// The identity of an object in a manifest; unlike `ObjectKey` it can name an Endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    kind: Kind,
    namespace: String,
    name: String,
}

impl Id {
    pub(super) fn endpoints(namespace: Option<&str>, name: &str) -> Self {
        Kind::Endpoints.id(namespace, name)
    }

    /// The Service an Endpoints of this identity belongs to: it bears the same name.
    pub(super) fn its_service(&self) -> Self {
        Self {
            kind: Kind::Service,
            ..self.clone()
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.as_str())?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Why a file cannot be used, and where.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Reads all documents of a file; one that is broken breaks the whole.
pub(super) fn parse(text: &str) -> Result<Contents, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut contents = Contents::default();
    for document in documents(text) {
        for value in document.values()? {
            value.read(&mut contents)?;
        }
    }
    Ok(contents)
}

/// The text between two `---` lines, from its first line that says something.
struct Document<'a> {
    line: usize,
    text: &'a str,
}

/// Splits at document markers. They count even inside block scalars, as the YAML specification has
/// it, so that this needs no parser and gives each document its line.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut open: Option<(usize, usize)> = None;
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let after_marker = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if after_marker.is_some()
            && let Some((line, start)) = open.take()
        {
            documents.push(Document {
                line,
                text: &text[start..offset],
            });
        }
        if open.is_none() && says_something(after_marker.unwrap_or(line)) {
            open = Some((index + 1, offset));
        }
        offset += line.len();
    }
    documents.extend(open.map(|(line, start)| Document {
        line,
        text: &text[start..],
    }));
    documents
}

/// Not so: blank lines, comments, directives (`%YAML 1.2`) and document ends.
fn says_something(line: &str) -> bool {
    let line = line.trim();
    !(line.is_empty() || line.starts_with(['#', '%']) || line == "...")
}

/// One JSON or YAML value that should be an object or a list of objects.
struct Value<'a> {
    line: usize,
    text: Cow<'a, str>,
    format: Format,
}

enum Format {
    Json,
    Yaml,
    /// YAML of our own making, whose lines are not those of the file.
    RewrittenYaml,
}

impl<'a> Document<'a> {
    /// Several if it is JSON, where a value ends by itself.
    fn values(&self) -> Result<Vec<Value<'a>>, Fault> {
        if !self.text.trim_start().starts_with('{') {
            return Ok(vec![self.yaml_value()?]);
        }
        // It may also be YAML in flow style.
        let is_yaml = || serde_norway::from_str::<IgnoredAny>(self.text).is_ok();
        match self.json_values() {
            Err(_) if is_yaml() => Ok(vec![self.yaml_value()?]),
            values => values,
        }
    }

    fn json_values(&self) -> Result<Vec<Value<'a>>, Fault> {
        let mut values = Vec::new();
        let mut stream = serde_json::Deserializer::from_str(self.text).into_iter::<IgnoredAny>();
        let (mut start, mut line) = (0, self.line);
        while let Some(value) = stream.next() {
            value.map_err(|error| json_fault(self.line, &error))?;
            let end = stream.byte_offset();
            let text = self.text[start..end].trim_start();
            line += n_lines(&self.text[start..end - text.len()]);
            values.push(Value {
                line,
                text: Cow::Borrowed(text),
                format: Format::Json,
            });
            line += n_lines(text);
            start = end;
        }
        Ok(values)
    }

    /// Resolves merge keys (`<<`), which serde_norway does only for untyped values.
    fn yaml_value(&self) -> Result<Value<'a>, Fault> {
        let &Self { line, text } = self;
        if !text.contains("<<:") {
            return Ok(Value {
                line,
                text: Cow::Borrowed(text),
                format: Format::Yaml,
            });
        }
        let rewritten = serde_norway::from_str::<serde_norway::Value>(text)
            .and_then(|mut value| {
                value.apply_merge()?;
                serde_norway::to_string(&value)
            })
            .map_err(|error| yaml_fault(line, &error))?;
        Ok(Value {
            line,
            text: Cow::Owned(rewritten),
            format: Format::RewrittenYaml,
        })
    }
}

fn n_lines(text: &str) -> usize {
    text.matches('\n').count()
}

fn other_version(api_version: &str) -> String {
    format!("apiVersion {api_version} is not one that can be read")
}

impl Value<'_> {
    fn read(&self, contents: &mut Contents) -> Result<(), Fault> {
        // A document may also be an explicit null.
        let Some(outline) = self.decode(PhantomData::<Option<Outline>>)? else {
            return Ok(());
        };
        let (api_version, kind) = match (&outline.api_version, &outline.kind) {
            (Some(api_version), Some(kind)) => (api_version, kind),
            (_, None) => return Err(self.fault("the document has no kind")),
            (None, Some(kind)) => return Err(self.fault(format!("the {kind} has no apiVersion"))),
        };

        let Some(kind_of_items) = kind.strip_suffix("List") else {
            if Kind::is_other_version(api_version, kind) {
                let fault = self.fault(other_version(api_version));
                return Err(fault.on(&outline.label(None, None)));
            }
            let kind = Kind::of(api_version, kind);
            let raw = self
                .decode(AsKind(kind))
                .map_err(|fault| fault.on(&outline.label(kind, None)))?;
            return self.admit(raw, || outline.label(kind, None), contents);
        };

        let items = self
            .decode(PhantomData::<ListOutline>)?
            .items
            .unwrap_or_default();
        let kinds: Vec<Option<Kind>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                // The items of a ServiceList need not repeat what they are.
                let api_version = item.api_version.as_deref().unwrap_or(api_version);
                let kind = item.kind.as_deref().unwrap_or(kind_of_items);
                let of_list = kind.strip_suffix("List");
                let fault = if Kind::is_other_version(api_version, kind) {
                    other_version(api_version)
                } else if of_list
                    .is_some_and(|of| of.is_empty() || Kind::of(api_version, of).is_some())
                {
                    format!("a {kind} inside a list cannot be read")
                } else {
                    return Ok(Kind::of(api_version, kind));
                };
                Err(self.fault(fault).on(&item.label(None, Some(index))))
            })
            .collect::<Result<_, _>>()?;
        let label = |index: usize| match items.get(index).zip(kinds.get(index)) {
            Some((item, kind)) => item.label(*kind, Some(index)),
            None => kind.clone(),
        };
        let reached = Cell::new(0);
        let raws = self
            .decode(Items {
                kinds: &kinds,
                reached: &reached,
            })
            .map_err(|fault| fault.on(&label(reached.get())))?;
        for (index, raw) in raws.into_iter().enumerate() {
            self.admit(raw, || label(index), contents)?;
        }
        Ok(())
    }

    fn admit(
        &self,
        raw: Option<Raw>,
        label: impl Fn() -> String,
        contents: &mut Contents,
    ) -> Result<(), Fault> {
        let Some(raw) = raw else {
            contents.n_ignored += 1;
            return Ok(());
        };
        let (id, item) = raw.complete().map_err(|why| self.fault(why).on(&label()))?;
        contents.entries.push(Entry {
            line: self.line,
            id,
            item,
        });
        Ok(())
    }

    fn decode<'de, S: DeserializeSeed<'de>>(&'de self, seed: S) -> Result<S::Value, Fault> {
        match self.format {
            Format::Json => seed
                .deserialize(&mut serde_json::Deserializer::from_str(&self.text))
                .map_err(|error| json_fault(self.line, &error)),
            Format::Yaml => seed
                .deserialize(serde_norway::Deserializer::from_str(&self.text))
                .map_err(|error| yaml_fault(self.line, &error)),
            Format::RewrittenYaml => seed
                .deserialize(serde_norway::Deserializer::from_str(&self.text))
                .map_err(|error| Fault {
                    line: self.line,
                    ..yaml_fault(self.line, &error)
                }),
        }
    }

    fn fault(&self, message: impl ToString) -> Fault {
        Fault {
            line: self.line,
            message: message.to_string(),
        }
    }
}

impl Fault {
    fn on(self, label: &str) -> Self {
        Self {
            message: format!("{label}: {}", self.message),
            ..self
        }
    }

    /// Cuts the position off a parser's message, because it counts from the start of the document.
    fn at(line: usize, message: &str, position: &str) -> Self {
        let end = message.find(position).unwrap_or(message.len());
        Self {
            line,
            message: message[..end].to_owned(),
        }
    }
}

fn json_fault(first_line: usize, error: &serde_json::Error) -> Fault {
    let position = format!(" at line {} column {}", error.line(), error.column());
    // Line 0 is how serde_json says that it does not know.
    let line = first_line + error.line().saturating_sub(1);
    Fault::at(line, &error.to_string(), &position)
}

fn yaml_fault(first_line: usize, error: &serde_norway::Error) -> Fault {
    match error.location() {
        Some(at) => {
            let position = format!(" at line {} column {}", at.line(), at.column());
            Fault::at(first_line + at.line() - 1, &error.to_string(), &position)
        }
        None => Fault {
            line: first_line,
            message: error.to_string(),
        },
    }
}

/// The part of an object that tells what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a Kubernetes object")]
struct Outline {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<OutlineMeta>,
}

#[derive(Deserialize)]
struct OutlineMeta {
    namespace: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct ListOutline {
    items: Option<Vec<Outline>>,
}

impl Outline {
    /// Names an object in a message; by its place in the list if it has no name.
    fn label(&self, kind: Option<Kind>, index: Option<usize>) -> String {
        let meta = self.metadata.as_ref();
        let name = meta.and_then(|meta| meta.name.as_deref());
        match (kind, name, index) {
            (Some(kind), Some(name), _) => {
                let namespace = meta.and_then(|meta| meta.namespace.as_deref());
                kind.id(namespace, name).to_string()
            }
            (Some(kind), None, None) => kind.as_str().to_owned(),
            (Some(kind), None, Some(index)) => format!("{} items[{index}]", kind.as_str()),
            (None, name, _) => {
                let kind = self.kind.as_deref().unwrap_or("object");
                name.map_or_else(|| kind.to_owned(), |name| format!("{kind} {name}"))
            }
        }
    }
}

/// The kinds a service proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Service,
    EndpointSlice,
    Endpoints,
    Node,
    ServiceCidr,
}

impl Kind {
    fn of(api_version: &str, kind: &str) -> Option<Self> {
        Some(match (api_version, kind) {
            ("v1", "Service") => Self::Service,
            ("v1", "Endpoints") => Self::Endpoints,
            ("v1", "Node") => Self::Node,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::EndpointSlice,
            ("networking.k8s.io/v1", "ServiceCIDR") => Self::ServiceCidr,
            _ => return None,
        })
    }

    /// Whether it is another version of what is read: leaving it out would change what is served.
    fn is_other_version(api_version: &str, kind: &str) -> bool {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let known = matches!(
            (group, kind),
            ("", "Service" | "Endpoints" | "Node")
                | ("discovery.k8s.io", "EndpointSlice")
                | ("networking.k8s.io", "ServiceCIDR")
        );
        known && Self::of(api_version, kind).is_none()
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// Identifies an object of this kind, in its default namespace if it names none.
    fn id(self, namespace: Option<&str>, name: &str) -> Id {
        let namespace = match namespace {
            _ if !self.is_namespaced() => "",
            None | Some("") => DEFAULT_NAMESPACE,
            Some(namespace) => namespace,
        };
        Id {
            kind: self,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn is_namespaced(self) -> bool {
        match self {
            Self::Service | Self::EndpointSlice | Self::Endpoints => true,
            Self::Node | Self::ServiceCidr => false,
        }
    }
}

/// An object as the file has it.
enum Raw {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Endpoints(Box<Endpoints>),
    Node(Box<Node>),
    ServiceCidr(Box<ServiceCIDR>),
}

impl Raw {
    /// Fills in what the API server would.
    fn complete(self) -> Result<(Id, Item), String> {
        let object = match self {
            Self::Service(mut service) => {
                let id = identify(Kind::Service, &mut service.metadata)?;
                defaults::service(&mut service);
                (id, Object::Service(service))
            }
            Self::EndpointSlice(mut slice) => {
                let id = identify(Kind::EndpointSlice, &mut slice.metadata)?;
                defaults::slice(&mut slice);
                (id, Object::EndpointSlice(slice))
            }
            Self::Node(mut node) => {
                let id = identify(Kind::Node, &mut node.metadata)?;
                defaults::node(&mut node);
                (id, Object::Node(node))
            }
            Self::ServiceCidr(mut cidr) => {
                let id = identify(Kind::ServiceCidr, &mut cidr.metadata)?;
                (id, Object::ServiceCidr(cidr))
            }
            Self::Endpoints(mut endpoints) => {
                let id = identify(Kind::Endpoints, &mut endpoints.metadata)?;
                defaults::endpoints(&mut endpoints);
                let slices = mirror(&endpoints).map_err(|error| error.to_string())?;
                let slices = slices
                    .into_iter()
                    .map(|slice| Object::EndpointSlice(slice.into()));
                return Ok((id, Item::Endpoints(slices.map(Arc::new).collect())));
            }
        };
        Ok((object.0, Item::Object(Arc::new(object.1))))
    }
}

/// Checks that an object has a name, and settles its namespace.
fn identify(kind: Kind, meta: &mut ObjectMeta) -> Result<Id, String> {
    let name = meta.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    let id = kind.id(meta.namespace.as_deref(), name);
    meta.namespace = kind.is_namespaced().then(|| id.namespace.clone());
    Ok(id)
}

/// Decodes an object of a known kind, and skips one of no interest.
struct AsKind(Option<Kind>);

impl<'de> DeserializeSeed<'de> for AsKind {
    type Value = Option<Raw>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Option<Raw>, D::Error> {
        Ok(Some(match self.0 {
            Some(Kind::Service) => Raw::Service(Deserialize::deserialize(from)?),
            Some(Kind::EndpointSlice) => Raw::EndpointSlice(Deserialize::deserialize(from)?),
            Some(Kind::Endpoints) => Raw::Endpoints(Deserialize::deserialize(from)?),
            Some(Kind::Node) => Raw::Node(Deserialize::deserialize(from)?),
            Some(Kind::ServiceCidr) => Raw::ServiceCidr(Deserialize::deserialize(from)?),
            None => {
                IgnoredAny::deserialize(from)?;
                return Ok(None);
            }
        }))
    }
}

/// Decodes the items of a list straight from the text, each as its own kind: by way of an untyped
/// value, errors would lose their line.
#[derive(Clone, Copy)]
struct Items<'a> {
    kinds: &'a [Option<Kind>],
    /// The item at hand, to name it in an error.
    reached: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Option<Raw>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Option<Raw>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            // An outline without items says that they are null.
            if key == "items" && !self.kinds.is_empty() {
                items = map.next_value_seed(ItemSequence(self))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(items)
    }
}

struct ItemSequence<'a>(Items<'a>);

impl<'de> DeserializeSeed<'de> for ItemSequence<'_> {
    type Value = Vec<Option<Raw>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ItemSequence<'_> {
    type Value = Vec<Option<Raw>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        for (index, kind) in self.0.kinds.iter().enumerate() {
            self.0.reached.set(index);
            items.extend(sequence.next_element_seed(AsKind(*kind))?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests;
