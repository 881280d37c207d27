//! Pages of one column of a row group, read one after the other within bounds that hold whatever the file says of itself.

use super::codec::decompress;
use super::delta;
use super::thrift::PageHeader;
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Type as Physical};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of a page, decompressed: writers aim at one MiB, and add a thousand values at a time.
const PAGE: u64 = 1 << 30;
/// Most bytes of all columns' pages at once.
const LIVE: u64 = 3 << 30;
/// Most values of a page, and of the pages of one call. A column of a single value takes no bytes for any number of them.
const VALUES: u64 = 1 << 24;

/// What the columns of a row group share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Bytes of pages in memory.
    live: AtomicU64,
}

fn error(why: impl Into<String>) -> ParquetError {
    ParquetError::General(why.into())
}

/// The pages of one column of a row group.
pub struct Pages {
    file: Arc<File>,
    shared: Arc<Shared>,
    at: u64,
    end: u64,
    codec: Compression,
    physical: Physical,
    width: usize,
    /// Highest definition and repetition levels.
    levels: (i16, i16),
    /// Values to come.
    values: u64,
    /// Values of pages since the reader asked for rows.
    run: Arc<AtomicU64>,
    next: Option<(PageHeader, u64)>,
    /// Bytes of the dictionary and of the page at hand.
    held: (u64, u64),
}

impl Pages {
    /// Errors: the column lies outside the file, or in another one.
    pub fn new(
        file: Arc<File>,
        size: u64,
        meta: &ColumnChunkMetaData,
        shared: Arc<Shared>,
        run: Arc<AtomicU64>,
    ) -> Result<Self> {
        if meta.file_path().is_some_and(|p| !p.is_empty()) {
            return Err(error("its data lie in another file"));
        }
        let first = meta.dictionary_page_offset().filter(|at| *at > 0).unwrap_or(i64::MAX).min(meta.data_page_offset());
        let range = u64::try_from(first).ok().zip(u64::try_from(meta.compressed_size()).ok());
        let range = range.and_then(|(at, len)| Some((at, at.checked_add(len)?))).filter(|(_, end)| *end <= size);
        let (at, end) = range.ok_or_else(|| error(format!("column `{}` lies outside the file", meta.column_path())))?;
        let column = meta.column_descr();
        Ok(Self {
            file,
            shared,
            at,
            end,
            codec: meta.compression(),
            physical: meta.column_type(),
            width: usize::try_from(column.type_length()).unwrap_or(0),
            levels: (column.max_def_level(), column.max_rep_level()),
            values: u64::try_from(meta.num_values()).unwrap_or(0),
            run,
            next: None,
            held: (0, 0),
        })
    }

    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut out =
            bytemuck::try_zeroed_vec(len as usize).map_err(|()| error(format!("no memory for {len} bytes")))?;
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut out)).map_err(|e| error(e.to_string()))?;
        Ok(out)
    }

    /// Finds the next page's header, unless it is known.
    fn look(&mut self) -> Result<Option<&PageHeader>> {
        // Indices and pages of nothing are passed over.
        while self.next.is_none() && self.at < self.end && self.values > 0 {
            let left = self.end - self.at;
            let mut most = 1 << 10;
            let (header, len) = loop {
                let head = self.bytes(self.at, left.min(most))?;
                match PageHeader::read(&head) {
                    Some(found) => break found,
                    None if most < left && most < 1 << 26 => most *= 16,
                    None => return Err(error("a page's header cannot be decoded")),
                }
            };
            self.at += len as u64;
            if header.stored > self.end - self.at {
                return Err(error("a page reaches beyond its column"));
            }
            if header.kind == 1 || header.kind != 2 && header.values == 0 {
                self.at += header.stored;
                continue;
            }
            self.next = Some((header, len as u64));
        }
        Ok(self.next.as_ref().map(|(header, _)| header))
    }

    /// Takes note of what is in memory.
    fn hold(&mut self, dictionary: u64, page: u64) -> Result<()> {
        let before = self.held.0 + self.held.1;
        self.held = (dictionary, page);
        let live = &self.shared.live;
        live.fetch_sub(before, Ordering::Relaxed);
        if live.fetch_add(dictionary + page, Ordering::Relaxed) + dictionary + page > LIVE {
            return Err(error(format!(
                "the columns' pages need more than {LIVE} bytes at once; write it with smaller pages"
            )));
        }
        Ok(())
    }

    fn page(&mut self, h: &PageHeader) -> Result<Page> {
        if h.size > PAGE {
            return Err(error(format!("a page of {} bytes is more than {PAGE}; write it with smaller pages", h.size)));
        }
        let dictionary = h.kind == 2;
        self.hold(if dictionary { h.size } else { self.held.0 }, if dictionary { 0 } else { h.size })?;
        let stored = self.bytes(self.at, h.stored)?;
        let levels = usize::try_from(if h.kind == 3 { h.level_bytes.0 + h.level_bytes.1 } else { 0 });
        let levels = levels.ok().filter(|n| *n <= stored.len() && *n as u64 <= h.size);
        let levels = levels.ok_or_else(|| error("a page's levels are longer than the page"))?;
        let (head, rest) = stored.split_at(levels);
        let size = h.size as usize - levels;
        let buf = if h.plain || self.codec == Compression::UNCOMPRESSED {
            if rest.len() != size {
                return Err(error("a page is not as long as its header says"));
            }
            stored
        } else {
            let rest = if size == 0 { Vec::new() } else { decompress(self.codec, rest, size).map_err(error)? };
            if head.is_empty() { rest } else { [head, &rest].concat() }
        };
        let num_values = u32::try_from(h.values).map_err(|_| error("a page has too many values"))?;
        let encoding = encoding(h.encoding)?;
        if dictionary {
            // A string takes the four bytes of its length at least.
            if h.values > buf.len() as u64 {
                return Err(error("a dictionary has more values than bytes"));
            }
            return Ok(Page::DictionaryPage { buf: Bytes::from(buf), num_values, encoding, is_sorted: false });
        }
        let run = self.run.fetch_add(h.values, Ordering::Relaxed) + h.values;
        if h.values > VALUES && self.levels.1 > 0 || h.values > 16 * VALUES || run > 32 * VALUES {
            return Err(error(format!("a page of {} values is too much; write it with smaller pages", h.values)));
        }
        self.values = self.values.saturating_sub(h.values);
        if h.kind == 0 {
            let levels = self.level_bytes(&buf, h)?;
            let (buf, encoding) = self.plain(buf, levels, encoding, h.values)?;
            let (def_level_encoding, rep_level_encoding) = (self::encoding(h.levels.0)?, self::encoding(h.levels.1)?);
            return Ok(Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics: None,
            });
        }
        if h.nulls > h.values {
            return Err(error("a page has more nulls than values"));
        }
        let (buf, encoding) = self.plain(buf, levels, encoding, h.values)?;
        Ok(Page::DataPageV2 {
            buf,
            num_values,
            encoding,
            num_nulls: h.nulls as u32,
            num_rows: h.rows as u32,
            def_levels_byte_len: h.level_bytes.0 as u32,
            rep_levels_byte_len: h.level_bytes.1 as u32,
            is_compressed: false,
            statistics: None,
        })
    }

    /// Bytes of levels at the start of a page of version 1.
    fn level_bytes(&self, buf: &[u8], h: &PageHeader) -> Result<usize> {
        let mut at = 0usize;
        for (max, encoding) in [(self.levels.1, h.levels.1), (self.levels.0, h.levels.0)] {
            if max == 0 {
                continue;
            }
            let bits = u64::from(16 - max.leading_zeros());
            at += match encoding {
                4 => (h.values * bits).div_ceil(8) as usize,
                _ => {
                    let len = buf.get(at..).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_le_bytes(*b));
                    4 + len.ok_or_else(|| error("a page ends within its levels"))? as usize
                }
            };
        }
        if at <= buf.len() { Ok(at) } else { Err(error("a page ends within its levels")) }
    }

    /// The page with delta-encoded strings as plain ones; others as they are.
    fn plain(&mut self, buf: Vec<u8>, levels: usize, encoding: Encoding, values: u64) -> Result<(Bytes, Encoding)> {
        let prefixes = encoding == Encoding::DELTA_BYTE_ARRAY;
        let strings = matches!(self.physical, Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY);
        if !strings || !prefixes && encoding != Encoding::DELTA_LENGTH_BYTE_ARRAY {
            return Ok((buf.into(), encoding));
        }
        let (head, data) = buf.split_at(levels);
        let width = (self.physical == Physical::FIXED_LEN_BYTE_ARRAY).then_some(self.width);
        let data = delta::to_plain(data, prefixes, values as usize, PAGE as usize, width).map_err(error)?;
        self.hold(self.held.0, (head.len() + data.len()) as u64)?;
        Ok(([head, &data].concat().into(), Encoding::PLAIN))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.shared.live.fetch_sub(self.held.0 + self.held.1, Ordering::Relaxed);
    }
}

fn encoding(code: u64) -> Result<Encoding> {
    #[expect(deprecated)] // old files have them
    Ok(match code {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        4 => Encoding::BIT_PACKED,
        5 => Encoding::DELTA_BINARY_PACKED,
        6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        7 => Encoding::DELTA_BYTE_ARRAY,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        _ => return Err(error(format!("encoding {code} is not supported"))),
    })
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.look()?;
        let Some((header, _)) = self.next.take() else { return Ok(None) };
        let page = self.page(&header)?;
        self.at += header.stored;
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let meta = |h: &PageHeader| PageMetadata {
            num_rows: (h.kind == 3).then_some(h.rows as usize),
            num_levels: (h.kind != 2).then_some(h.values as usize),
            is_dict: h.kind == 2,
        };
        Ok(self.look()?.map(meta))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(error("pages are not skipped"))
    }
}
