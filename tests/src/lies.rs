//! Lies: one file each under `tests/vectors/`, named by the lie. A lie is a recipe on the golden archive; what a verifier
//! must say to it stands beside the recipe.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use bytes::Bytes;
use custody::{policy::Policy, verify::Options};
use serde::{Deserialize, Serialize};

use crate::{
    golden::{self, Variant, ledger::Hooks, ledger::Ledger, objects, render},
    verdict::Outcome,
};

mod again;
mod evidence;
mod made;
pub mod object;
mod scenario;
mod silence;
mod tamper;
pub mod target;
mod whole;
pub mod wire;

/// How far the liar goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// One object is changed, as it lies there.
    Raw,
    /// All hashes around it are mended; the signatures are what they were.
    Mended,
    /// All is signed again with all of the ledger's keys. Gateways, root and witnesses do not help.
    Resigned,
    /// The ledger, and the gateway, registrar or root that the lie names, do it together.
    Colluding,
}

/// Which archive a lie is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Story {
    /// The golden archive.
    #[default]
    Plain,
    /// The one at whose end keys are called suspect: what they signed is undecided.
    Suspect,
}

fn is_plain_story(story: &Story) -> bool {
    *story == Story::Plain
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Recipe {
    /// A field of a message is edited.
    Edit {
        /// Where.
        target: String,
        /// Which field; of checkpoints `origin`, `size` or `root`, of their raw signature lines `key_hash`, `time` or
        /// `signature`.
        field: String,
        /// What happens to it.
        how: String,
        /// The batch's header gets the root of the records as they now are.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        mend_batch: bool,
    },
    /// One bit of an object turns.
    FlipByte {
        /// Where.
        target: String,
        /// Which byte; negative from the end.
        byte: i64,
    },
    /// An object, frame, or list of records ends early.
    Truncate {
        /// Where.
        target: String,
        /// How many bytes, entries or records stay; negative: so many go.
        keep: i64,
    },
    /// It is gone.
    Remove {
        /// What.
        target: String,
    },
    /// Two change places.
    Swap {
        /// One.
        target: String,
        /// The other.
        with: String,
    },
    /// It stands twice.
    Duplicate {
        /// What.
        target: String,
    },
    /// Something else stands in its place.
    Replace {
        /// What.
        target: String,
        /// By which other object.
        with: String,
        /// That of the log of another name, signed with the same keys.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        other_origin: bool,
    },
    /// A text in a note is replaced.
    Text {
        /// Which note.
        target: String,
        /// What stands there.
        find: String,
        /// What shall stand there.
        replace: String,
    },
    /// The archive as it was at an earlier checkpoint.
    Older {
        /// Which checkpoint.
        checkpoint: String,
    },
    /// An evidence file is edited.
    Evidence {
        /// Which, by name.
        of: String,
        /// How, by name.
        edit: String,
    },
    /// A file that the auditor knows is written differently.
    Known {
        /// How, by name.
        edit: String,
    },
    /// The whole archive of another log.
    OtherOrigin {},
    /// The story itself goes another way: by the name of the scenario.
    Scenario {
        /// Its name.
        name: String,
    },
}

/// A lie, as its file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lie {
    /// What the liar wants to be believed.
    pub says: String,
    /// How far the liar goes.
    pub strength: Strength,
    /// The archive that the lie is about: the golden one, or that at whose end keys are called suspect.
    #[serde(default, skip_serializing_if = "is_plain_story")]
    pub story: Story,
    /// The auditor's policy, by name.
    #[serde(default = "plain_policy", skip_serializing_if = "is_plain_policy")]
    pub policy: String,
    /// Files that the auditor knows, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known: Vec<String>,
    /// The check that alone finds this lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<String>,
    /// The question is asked so many days later than that of the golden archive.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub days_later: u64,
    /// The size of the log that the question is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_size: Option<u64>,
    /// Only what was received from this time on is asked for, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Only what was received up to this time, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// What is done.
    pub recipe: Recipe,
    /// What a verifier must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Outcome>,
    /// What one says that lacks the check of `alone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<Outcome>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
fn is_zero(days: &u64) -> bool {
    *days == 0
}

fn plain_policy() -> String {
    "policy".to_owned()
}

fn is_plain_policy(name: &String) -> bool {
    name == "policy"
}

/// The golden archive, with all that lies start from.
pub struct Golden {
    /// The ledger at the end of the story.
    pub ledger: Ledger,
    /// Its archive.
    pub rendered: render::Rendered,
    /// Known files by name.
    pub known: BTreeMap<String, Vec<u8>>,
}

impl Golden {
    fn of(ledger: Ledger) -> Self {
        let rendered = render::render(&ledger, &mut render::Truth);
        let known = objects::known_files(&ledger, &rendered);
        Self { ledger, rendered, known }
    }
}

/// The golden archive.
pub static GOLDEN: LazyLock<Golden> = LazyLock::new(|| Golden::of(golden::tell(Variant::Plain, Hooks::default())));
/// The same story, and at its end some keys are called suspect.
pub static SUSPECT: LazyLock<Golden> = LazyLock::new(|| Golden::of(golden::tell(Variant::Suspect, Hooks::default())));
/// The same story of a log of another name.
pub static OTHER: LazyLock<Golden> =
    LazyLock::new(|| Golden::of(golden::tell_as("ledger.example/other", Variant::Plain, Hooks::default())));

/// What the auditor is given.
#[derive(Clone, Debug)]
pub struct Told {
    /// The archive.
    pub objects: objects::Objects,
    /// The auditor's policy.
    pub policy: Policy,
    /// What the auditor knows, by name.
    pub known: BTreeMap<String, Vec<u8>>,
    /// The lie is not an archive but this evidence file.
    pub evidence: Option<Vec<u8>>,
    /// What is asked, but for what is known.
    pub asked: Options,
}

impl Lie {
    /// Whether it is told about an evidence file.
    pub fn is_of_evidence(&self) -> bool {
        matches!(self.recipe, Recipe::Evidence { .. })
    }

    /// When the question is asked, in microseconds.
    pub fn as_of(&self) -> u64 {
        golden::AS_OF + self.days_later * golden::DAY
    }

    /// Follows the recipe.
    ///
    /// # Errors
    /// In words, when the recipe does not fit the golden archive.
    pub fn tell(&self) -> Result<Told, String> {
        let asked = Options {
            as_of: self.as_of(),
            at_size: self.at_size,
            since: self.since,
            until: self.until,
            ..Options::default()
        };
        if let Recipe::Evidence { of, edit } = &self.recipe {
            let file = evidence::edit(&GOLDEN, of, edit)?;
            return Ok(Told {
                objects: objects::Objects::default(),
                policy: golden::policy(),
                known: BTreeMap::new(),
                evidence: Some(file),
                asked,
            });
        }
        let golden: &Golden = match self.story {
            Story::Plain => &GOLDEN,
            Story::Suspect => &SUSPECT,
        };
        let objects = tamper::tamper(golden, self)?;
        let beside = match &self.recipe {
            Recipe::Scenario { name } => name.starts_with("policy-"),
            Recipe::Known { .. } => true,
            _ => false,
        } || self.days_later > 0
            || self.at_size.is_some()
            || self.since.is_some()
            || self.until.is_some();
        if objects == golden.rendered.objects && !beside {
            return Err("the recipe changes nothing".to_owned());
        }
        let mut policy = match self.policy.as_str() {
            "first-four" => golden::demanding_policy(4),
            "all-six" => golden::demanding_policy(6),
            name => golden::policies().remove(name).ok_or("no such policy")?,
        };
        if let Recipe::Scenario { name } = &self.recipe {
            made::change_policy(name, &mut policy);
        }
        let known = |name: &String| Some((name.clone(), golden.known.get(name)?.clone()));
        let mut known: BTreeMap<_, _> = self.known.iter().filter_map(known).collect();
        if known.len() != self.known.len() {
            return Err("no such known file".to_owned());
        }
        if let Recipe::Known { edit } = &self.recipe {
            known.values_mut().try_for_each(|file| made::change_known(file, edit))?;
        }
        Ok(Told { objects: objects::Objects(objects), policy, known, evidence: None, asked })
    }
}

impl Told {
    /// What our verifier says. Without a verdict there are no claims: nothing is shown.
    ///
    /// # Errors
    /// In words, when there is no verdict on an evidence file.
    pub fn verify(&self) -> Result<Outcome, String> {
        if let Some(file) = &self.evidence {
            return crate::verdict::check_evidence(file, &self.policy);
        }
        let known: Vec<Vec<u8>> = self.known.values().cloned().collect();
        let policy = Policy::parse(&golden::policy_bytes(&self.policy)).map_err(|why| why.to_string());
        let verdict =
            policy.and_then(|policy| crate::verdict::verify(&self.objects, &policy, self.asked.clone(), &known));
        Ok(verdict.unwrap_or_else(|_| Outcome {
            exit: 2,
            first: String::new(),
            claims: BTreeMap::new(),
            findings: Vec::new(),
        }))
    }

    /// Writes it as a folder: `archive/` (or the file `evidence`), `policy.json`, `known/`, and what is asked in `asked.json`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        objects::write_all(&self.objects.0, &folder.join("archive"))?;
        if let Some(file) = &self.evidence {
            objects::write_one(&folder.join("evidence"), file)?;
        }
        objects::write_one(&folder.join("policy.json"), &golden::policy_bytes(&self.policy))?;
        let Options { as_of, at_size, since, until, .. } = self.asked;
        let asked = serde_json::json!({"as_of": as_of, "at_size": at_size, "since": since, "until": until});
        objects::write_one(&folder.join("asked.json"), asked.to_string().as_bytes())?;
        self.known.iter().try_for_each(|(name, bytes)| objects::write_one(&folder.join("known").join(name), bytes))
    }
}

/// Objects by name.
pub(crate) type ObjectMap = BTreeMap<String, Bytes>;

/// Where the lies' files are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// All lies by name, which is `<object>/<lie>`.
///
/// # Errors
/// What the file system says, or which file is not in form.
pub fn read_all() -> io::Result<BTreeMap<String, Lie>> {
    let mut lies = BTreeMap::new();
    for object in fs::read_dir(folder())? {
        let object = object?.path();
        for file in fs::read_dir(&object)? {
            let path = file?.path();
            let name = path.strip_prefix(folder()).unwrap_or(&path).with_extension("").to_string_lossy().into_owned();
            let lie = toml::from_str(&fs::read_to_string(&path)?);
            lies.insert(name.clone(), lie.map_err(|why| io::Error::other(format!("{name}: {why}")))?);
        }
    }
    Ok(lies)
}

/// Writes a lie's file.
///
/// # Errors
/// What the file system says.
pub fn write(name: &str, lie: &Lie) -> io::Result<()> {
    let text = toml::to_string(lie).map_err(io::Error::other)?;
    objects::write_one(&folder().join(format!("{name}.toml")), text.as_bytes())
}
