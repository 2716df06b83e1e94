//! Compiles `proto/custody/v1/*.proto` without `protoc`: the messages (prost), the services (tonic, with the feature
//! `grpc`) and the table of the strict wire form, which is read from the options that stand beside each field.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

use protox::prost_reflect::{Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};

const FILES: [&str; 13] = [
    "options",
    "record",
    "batch",
    "head",
    "segment",
    "statement",
    "log",
    "evidence",
    "ingest",
    "admin",
    "relay",
    "control",
    "search",
];
/// What services say and nobody keeps: no message of these is in strict form.
const SPOKEN: [&str; 6] = ["options", "ingest", "admin", "relay", "control", "search"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/custody/v1");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let files: Vec<String> = FILES
        .iter()
        .map(|name| format!("custody/v1/{name}.proto"))
        .filter(|file| PathBuf::from("proto").join(file).exists())
        .collect();
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    #[expect(clippy::disallowed_methods, reason = "what the build generates is made again, not kept")]
    fs::write(out.join("strict_table.rs"), strict_table(&compiler.descriptor_pool())?)?;
    #[expect(clippy::disallowed_methods, reason = "what the build generates is made again, not kept")]
    fs::write(out.join("numbers.txt"), numbers(&compiler.descriptor_pool())?)?;

    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    let descriptors = compiler.file_descriptor_set();
    // Compiled in with the feature alone, so that a verifier builds without anything of tonic.
    #[cfg(feature = "grpc")]
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    #[cfg(not(feature = "grpc"))]
    config.compile_fds(descriptors)?;
    Ok(())
}

/// Every number and name of the package, the services' own messages too: a test holds it against what was frozen.
fn numbers(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut lines = Vec::new();
    for message in pool.all_messages().filter(|m| m.package_name() == "custody.v1") {
        for field in message.fields() {
            let kind = match field.kind() {
                Kind::Message(inner) => inner.name().to_owned(),
                Kind::Enum(inner) => inner.name().to_owned(),
                other => format!("{other:?}").to_lowercase(),
            };
            let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
            let label = match (field.cardinality(), oneof) {
                (Cardinality::Repeated, _) => "repeated".to_owned(),
                (_, Some(oneof)) => format!("oneof {}", oneof.name()),
                _ if field.field_descriptor_proto().proto3_optional() => "optional".to_owned(),
                _ => "plain".to_owned(),
            };
            lines.push(format!("message {} {:04} {} {kind} {label}", message.name(), field.number(), field.name()));
        }
    }
    for known in pool.all_enums().filter(|e| e.package_name() == "custody.v1") {
        let values = known.values();
        lines.extend(values.map(|value| format!("enum {} {:04} {}", known.name(), value.number(), value.name())));
    }
    for service in pool.services().filter(|s| s.package_name() == "custody.v1") {
        for method in service.methods() {
            let stream = |streams: bool| if streams { "stream " } else { "" };
            let (input, output) = (method.input(), method.output());
            let (from, to) = (stream(method.is_client_streaming()), stream(method.is_server_streaming()));
            let what = format!("{from}{} -> {to}{}", input.name(), output.name());
            lines.push(format!("service {} {} {what}", service.name(), method.name()));
        }
    }
    lines.sort_unstable();
    Ok(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// One `Message` constant for each message of the package, fields in ascending order of their tags.
fn strict_table(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    let mut names = Vec::new();
    for message in pool.all_messages().filter(|m| m.package_name() == "custody.v1") {
        let file = message.parent_file();
        if SPOKEN.iter().any(|name| file.name().ends_with(&format!("/{name}.proto"))) {
            continue;
        }
        names.push(constant_name(&message));
        writeln!(out, "/// `{}`.", message.name())?;
        writeln!(
            out,
            "pub const {}: Message = Message {{ name: {:?}, fields: &[",
            constant_name(&message),
            message.name()
        )?;
        let mut fields: Vec<FieldDescriptor> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        for field in fields {
            writeln!(out, "    {},", field_row(pool, &field)?)?;
        }
        writeln!(out, "] }};")?;
    }
    writeln!(out, "/// Every message of the package.")?;
    writeln!(
        out,
        "pub const ALL: &[&Message] = &[{}];",
        names.iter().map(|n| format!("&{n}")).collect::<Vec<_>>().join(", ")
    )?;
    Ok(out)
}

fn constant_name(message: &MessageDescriptor) -> String {
    let mut out = String::new();
    for (at, letter) in message.name().char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

/// The numbers of a `Rule` option, by name; zero where the option does not say.
struct Rule(Option<DynamicMessage>);

impl Rule {
    fn number(&self, name: &str) -> u64 {
        let value = self.0.as_ref().and_then(|rule| rule.get_field_by_name(name).map(|v| v.into_owned()));
        value.map_or(0, |v| v.as_u32().map(u64::from).or(v.as_u64()).unwrap_or(0))
    }

    fn flag(&self, name: &str) -> bool {
        let value = self.0.as_ref().and_then(|rule| rule.get_field_by_name(name).map(|v| v.into_owned()));
        value.and_then(|v| v.as_bool()).unwrap_or(false)
    }
}

/// Greatest time that a message may hold: 9999-12-31T23:59:59.999999Z.
const TIME_MAX_US: u64 = 253_402_300_799_999_999;

fn field_row(pool: &DescriptorPool, field: &FieldDescriptor) -> Result<String, Box<dyn Error>> {
    let extension = pool.get_extension_by_name("custody.v1.is").ok_or("the option `is` is gone")?;
    let options = field.options();
    let rule = Rule(
        options.has_extension(&extension).then(|| options.get_extension(&extension).as_message().cloned()).flatten(),
    );
    let integer_max = |natural: u64| match (rule.flag("time"), rule.number("most")) {
        (true, _) => TIME_MAX_US,
        (false, 0) => natural,
        (false, most) => most,
    };
    let (len, min, max) = (rule.number("len"), rule.number("min"), rule.number("max"));
    let (least, greatest) = if len > 0 { (len, len) } else { (min, max) };
    let text = if rule.flag("pattern") {
        "Pattern"
    } else if rule.flag("token") {
        "Token"
    } else {
        "Utf8"
    };
    let kind = match field.kind() {
        Kind::Uint32 if field.name() == "version" && field.number() == 1 => "Kind::Version".to_owned(),
        Kind::Uint32 => format!("Kind::Integer {{ max: {} }}", integer_max(u64::from(u32::MAX))),
        Kind::Uint64 => format!("Kind::Integer {{ max: {} }}", integer_max(u64::MAX)),
        Kind::Bool => "Kind::Bool".to_owned(),
        Kind::Enum(known) => {
            let max = known.values().map(|v| v.number()).max().unwrap_or(0);
            if known.values().count() != usize::try_from(max)? + 1 {
                return Err(format!("{}: the values of an enum are contiguous", known.name()).into());
            }
            format!("Kind::Enum {{ max: {max} }}")
        }
        Kind::Bytes => format!("Kind::Bytes {{ min: {least}, max: {greatest} }}"),
        Kind::String => format!("Kind::Text {{ min: {least}, max: {greatest}, text: Text::{text} }}"),
        Kind::Message(inner) => format!("Kind::Message(&{})", constant_name(&inner)),
        other => return Err(format!("{}: {other:?} has no place in the strict wire form", field.full_name()).into()),
    };
    let bounded = !matches!(field.kind(), Kind::Bytes | Kind::String) || greatest > 0;
    if !bounded {
        return Err(format!("{}: say its greatest length", field.full_name()).into());
    }
    let oneof = field.containing_oneof().filter(|o| !o.is_synthetic());
    let presence = if field.cardinality() == Cardinality::Repeated {
        if rule.number("count") == 0 {
            return Err(format!("{}: say how many there may be", field.full_name()).into());
        }
        format!("Presence::Repeated {{ count: {} }}", rule.number("count"))
    } else if let Some(group) = oneof {
        let of = pool.get_extension_by_name("custody.v1.of").ok_or("the option `of` is gone")?;
        let rule = Rule(group.options().get_extension(&of).as_message().cloned());
        let first = group.fields().map(|f| f.number()).min().unwrap_or(0);
        format!("Presence::OneOf {{ first: {first}, required: {} }}", !rule.flag("may_be_absent"))
    } else if field.field_descriptor_proto().proto3_optional() {
        "Presence::Optional".to_owned()
    } else if least > 0 || matches!(field.kind(), Kind::Enum(_) | Kind::Message(_)) || kind == "Kind::Version" {
        "Presence::Required".to_owned()
    } else {
        "Presence::Implicit".to_owned()
    };
    Ok(format!("Field {{ tag: {}, name: {:?}, kind: {kind}, presence: {presence} }}", field.number(), field.name()))
}
