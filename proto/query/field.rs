//! The fields of the query language: their names, of what kind they are, and whether an index can hold them.

macro_rules! fields {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:literal, $kind:ident;)*) => {
        /// Something that can be asked of a record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Field {
            $($(#[doc = $doc])+ $field,)*
        }

        impl Field {
            /// All fields.
            pub const ALL: &'static [Self] = &[$(Self::$field,)*];

            /// Its name, as in a query.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$field => $name,)*
                }
            }

            /// What it holds.
            pub fn kind(self) -> Kind {
                match self {
                    $(Self::$field => Kind::$kind,)*
                }
            }

            /// What it is, in a sentence.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$field => concat!($($doc),+).trim_ascii_start(),)*
                }
            }
        }
    };
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of few texts, or some of them.
    Text,
    /// A text that hardly two records share: found by what the ledger keeps beside its index, and never counted by value.
    Unique,
    /// A number of microseconds.
    Duration,
    /// A number of bytes.
    Size,
    /// A number.
    Number,
    /// Microseconds since the Unix epoch.
    Time,
    /// Holds, or does not.
    Flag,
}

fields! {
    /// Kind of the record, as `call` or `access_change`.
    Kind = "kind", Text;
    /// Id of the workspace.
    Workspace = "workspace", Text;
    /// Id of the gateway that signed it.
    Gateway = "gateway", Text;
    /// The gateway's run in which it was signed.
    Epoch = "epoch", Text;
    /// Id of the member who called, or whom the record is about.
    Member = "member", Text;
    /// Id of the token.
    Token = "token", Text;
    /// Id of the agent.
    Agent = "agent", Text;
    /// Id of the member who answers for a service.
    Owner = "owner", Text;
    /// Who did it: id of a member, a system, an administrator or an API token.
    Actor = "actor", Text;
    /// Client's name, as it said.
    Client = "client", Text;
    /// Client's version, as it said.
    ClientVersion = "client_version", Text;
    /// MCP server.
    Server = "server", Text;
    /// Tool, as `server/tool`.
    Tool = "tool", Text;
    /// Method of the request.
    Method = "method", Text;
    /// Version of the protocol.
    Protocol = "protocol", Text;
    /// `allowed` or `denied`.
    Decision = "decision", Text;
    /// How it ended, as `ok` or `tool_error`.
    Outcome = "outcome", Text;
    /// How it ended, of what the ledger did: `ok`, or the kind of error.
    Result = "result", Text;
    /// `complete`, `intent` or `outcome`.
    Phase = "phase", Text;
    /// `strict` or `relaxed`.
    Mode = "mode", Text;
    /// Rule of the access policy that decided, or that was changed.
    Rule = "rule", Text;
    /// Digest of the access policy in force, in hex.
    Policy = "policy", Text;
    /// Digest of the tool's definition, in hex.
    Definition = "definition", Text;
    /// Error code, as a signed number.
    ErrorCode = "error_code", Text;
    /// Id of the key that signed the tool runtime's receipt, in hex.
    Receipt = "receipt", Text;
    /// What was done: of a change of access, a tool definition, a gateway event, or the ledger.
    Action = "action", Text;
    /// `seen`, `changed` or `vanished`, of a tool definition.
    Change = "change", Text;
    /// Group of members.
    Group = "group", Text;
    /// Label of a server, a tool or a member.
    Label = "label", Text;
    /// Why, as a code.
    Reason = "reason", Text;
    /// Reference to why.
    Ticket = "ticket", Text;
    /// Severity of an alarm.
    Severity = "severity", Text;
    /// Name of an alarm.
    Alarm = "alarm", Text;
    /// W3C trace id, in hex.
    Trace = "trace", Unique;
    /// Digest of the conversation, in hex.
    Conversation = "conversation", Unique;
    /// How long the call took.
    Duration = "duration", Duration;
    /// Length of the request.
    RequestBytes = "request_bytes", Size;
    /// Length of the response.
    ResponseBytes = "response_bytes", Size;
    /// Number of the call in its epoch.
    Call = "call", Number;
    /// When it happened, by the gateway's clock.
    At = "at", Time;
    /// When the ledger received it, by the ledger's clock.
    Received = "received", Time;
    /// Records are missing before this one: declared as dropped, or lost with the gateway's state.
    Gap = "gap", Flag;
    /// The server asked the client.
    FromServer = "from_server", Flag;
}

impl Field {
    /// The field of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }

    /// Whether it holds texts.
    pub fn is_text(self) -> bool {
        matches!(self.kind(), Kind::Text | Kind::Unique)
    }
}
