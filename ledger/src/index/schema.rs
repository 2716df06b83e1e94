//! What a document of the index holds: a record's rank, and its facts but for what hardly two records share.
//!
//! What must hold: a document is a function of the facts alone. Texts are kept whole and as columns; numbers as columns alone.
//! Nothing is stored: the record itself is in the ledger's store. [`VERSION`] changes with every change of what is here, and a
//! folder of another version is built again.

use custody::query::{Facts, Field, Kind};
use tantivy::{
    IndexSettings, TantivyDocument,
    index::{IndexSortByField, Order},
    schema::{FAST, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
    store::Compressor,
};

use crate::store::Rank;

/// Version of the schema.
pub(super) const VERSION: u64 = 1;
/// Name of the column of ranks.
pub(super) const RANK: &str = "rank";

/// Tantivy's field of one of ours; ranks have the first.
pub(super) fn number_of(field: Field) -> tantivy::schema::Field {
    tantivy::schema::Field::from_field_id(u32::from(field as u8) + 1)
}

/// The schema.
pub(super) fn schema() -> Schema {
    let mut builder = Schema::builder();
    builder.add_u64_field(RANK, FAST);
    // Length and frequency of texts say nothing here, and would cost a byte for each text of each record.
    let indexing = TextFieldIndexing::default()
        .set_tokenizer("raw")
        .set_index_option(IndexRecordOption::Basic)
        .set_fieldnorms(false);
    let text = TextOptions::default().set_indexing_options(indexing).set_fast("raw");
    for field in Field::ALL {
        match field.kind() {
            Kind::Text => builder.add_text_field(field.name(), text.clone()),
            // Of what hardly two records share there is only whether it is there.
            _ => builder.add_u64_field(field.name(), FAST),
        };
    }
    builder.build()
}

/// Newest first, so that a page is read off the beginning.
pub(super) fn settings() -> IndexSettings {
    IndexSettings {
        sort_by_field: Some(IndexSortByField { field: RANK.to_owned(), order: Order::Desc }),
        docstore_compression: Compressor::None,
        docstore_compress_dedicated_thread: false,
        ..IndexSettings::default()
    }
}

/// A record's document.
pub(super) fn document(rank: Rank, facts: &Facts) -> TantivyDocument {
    let mut document = TantivyDocument::default();
    document.add_u64(tantivy::schema::Field::from_field_id(0), rank.0);
    for (field, text) in facts.all_texts() {
        match field.kind() {
            Kind::Unique => document.add_u64(number_of(field), 1),
            _ => document.add_text(number_of(field), text),
        }
    }
    for (field, number) in facts.all_numbers() {
        document.add_u64(number_of(field), number);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_the_number_that_its_documents_use() {
        let schema = schema();
        for field in Field::ALL {
            assert_eq!(schema.get_field_name(number_of(*field)), field.name());
        }
    }
}
