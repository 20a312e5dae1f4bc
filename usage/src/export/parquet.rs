//! The same rows as a table in Parquet: decimals are DECIMAL of 38 digits, moments are
//! TIMESTAMP in UTC, all else is text.

use super::{COLUMNS, Fields, Kind, WHAT};
use libsnap::error::{Error, OrFail, Result};
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use rust_decimal::Decimal;
use std::io::Write;
use std::sync::Arc;

/// Rows that are in memory until they are written.
const ROWS: usize = 16 << 10;
/// Of a decimal: all that 16 bytes hold.
const DIGITS: i32 = 38;

impl Kind {
    fn scale(self) -> u32 {
        match self {
            Kind::Money => 12,
            Kind::Price => 18,
            Kind::Count | Kind::Text | Kind::Moment => 0,
        }
    }

    fn column(self, name: &str) -> parquet::errors::Result<Type> {
        let of = |physical| Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
        match self {
            Kind::Text => of(Physical::BYTE_ARRAY)
                .with_logical_type(Some(LogicalType::String))
                .build(),
            Kind::Moment => {
                let moment = LogicalType::timestamp(true, TimeUnit::MILLIS);
                of(Physical::INT64).with_logical_type(Some(moment)).build()
            }
            Kind::Money | Kind::Price | Kind::Count => {
                let scale = self.scale().cast_signed();
                of(Physical::FIXED_LEN_BYTE_ARRAY)
                    .with_length(16)
                    .with_precision(DIGITS)
                    .with_scale(scale)
                    .with_logical_type(Some(LogicalType::decimal(scale, DIGITS)))
                    .build()
            }
        }
    }
}

/// What a column has in memory; empty fields are null.
enum Values {
    Text(Vec<ByteArray>),
    Number(Vec<FixedLenByteArray>),
    Moment(Vec<i64>),
}

pub struct Table<'a> {
    writer: SerializedFileWriter<&'a mut (dyn Write + Send)>,
    columns: Vec<(Values, Vec<i16>)>,
    rows: usize,
}

impl Table<'_> {
    pub fn begin(out: &mut (dyn Write + Send)) -> Result<Table<'_>> {
        let columns = COLUMNS.iter().map(|(name, kind)| Ok(Arc::new(kind.column(name)?)));
        let columns = columns.collect::<parquet::errors::Result<_>>().or_fail(|| WHAT)?;
        let schema = Type::group_type_builder("usage")
            .with_fields(columns)
            .build()
            .or_fail(|| WHAT)?;
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let writer = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties)).or_fail(|| WHAT)?;
        Ok(Table {
            writer,
            columns: empty(),
            rows: 0,
        })
    }

    pub fn add(&mut self, fields: &Fields) -> Result<()> {
        for (((_, kind), (values, levels)), field) in COLUMNS.iter().zip(&mut self.columns).zip(fields.iter()) {
            levels.push(i16::from(!field.is_empty()));
            if field.is_empty() {
                continue;
            }
            match values {
                Values::Text(texts) => texts.push(field.into()),
                Values::Number(numbers) => numbers.push(number(field, kind.scale())?),
                Values::Moment(moments) => {
                    let at: jiff::Timestamp = field.parse().or_fail(|| WHAT)?;
                    moments.push(at.as_millisecond());
                }
            }
        }
        self.rows += 1;
        match self.rows == ROWS {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let columns = std::mem::replace(&mut self.columns, empty());
        self.rows = 0;
        let mut group = self.writer.next_row_group().or_fail(|| WHAT)?;
        for (values, levels) in columns {
            let Some(mut column) = group.next_column().or_fail(|| WHAT)? else {
                return Err(Error::failed(WHAT).because("the table has fewer columns than rows have fields"));
            };
            let levels = Some(&levels[..]);
            let written = match values {
                Values::Text(texts) => column.typed::<ByteArrayType>().write_batch(&texts, levels, None),
                Values::Number(numbers) => column
                    .typed::<FixedLenByteArrayType>()
                    .write_batch(&numbers, levels, None),
                Values::Moment(moments) => column.typed::<Int64Type>().write_batch(&moments, levels, None),
            };
            written.or_fail(|| WHAT)?;
            column.close().or_fail(|| WHAT)?;
        }
        group.close().map(drop).or_fail(|| WHAT)
    }

    pub fn end(mut self: Box<Self>) -> Result<()> {
        if self.rows > 0 {
            self.flush()?;
        }
        self.writer.close().map(drop).or_fail(|| WHAT)
    }
}

fn empty() -> Vec<(Values, Vec<i16>)> {
    let column = |(_, kind): &(&str, Kind)| {
        let values = match kind {
            Kind::Text => Values::Text(Vec::new()),
            Kind::Moment => Values::Moment(Vec::new()),
            Kind::Money | Kind::Price | Kind::Count => Values::Number(Vec::new()),
        };
        (values, Vec::new())
    };
    COLUMNS.iter().map(column).collect()
}

/// A decimal with so many digits behind the point, as the integer of 16 bytes that it is then.
fn number(text: &str, scale: u32) -> Result<FixedLenByteArray> {
    let whole = match scale {
        // Larger than a decimal may be.
        0 => text.parse().ok(),
        _ => Decimal::from_str_exact(text).ok().and_then(|number| {
            let more = scale.checked_sub(number.scale())?;
            number.mantissa().checked_mul(10i128.pow(more))
        }),
    };
    let whole: i128 = whole.ok_or_else(|| Error::failed(WHAT).because(format!("{text} has too many digits")))?;
    Ok(ByteArray::from(whole.to_be_bytes().to_vec()).into())
}
