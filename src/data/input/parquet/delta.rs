//! Strings in Parquet's delta encodings, brought to its plain one, with a bound on what they become: a value may repeat the
//! start of the one before, so that a few bytes stand for gigabytes.

use super::thrift::Thrift;

/// `data` (DELTA_LENGTH_BYTE_ARRAY, or DELTA_BYTE_ARRAY with `prefixes`) as plain strings, at most `values` of them and `room`
/// bytes; fixed-length ones (`width`) have no length before them.
pub fn to_plain(
    data: &[u8],
    prefixes: bool,
    values: usize,
    room: usize,
    width: Option<usize>,
) -> Result<Vec<u8>, String> {
    let bad = || "a delta-encoded page is damaged".to_owned();
    let (shared, data) = if prefixes {
        let (lengths, used) = lengths(data, values).ok_or_else(bad)?;
        (lengths, &data[used..])
    } else {
        (Vec::new(), data)
    };
    let (suffixes, used) = lengths(data, values).ok_or_else(bad)?;
    if prefixes && shared.len() != suffixes.len() {
        return Err(bad());
    }
    let mut rest = &data[used..];
    let mut out = Vec::new();
    let mut last = 0..0;
    for (i, len) in suffixes.iter().enumerate() {
        let keep = shared.get(i).copied().unwrap_or(0);
        let suffix = rest.split_off(..*len).ok_or_else(bad)?;
        let whole = keep + len;
        if keep > last.len() || width.is_some_and(|w| w != whole) {
            return Err(bad());
        }
        if out.len() + 4 + whole > room {
            return Err(format!("a page becomes more than {room} bytes; write it with smaller pages"));
        }
        if width.is_none() {
            out.extend_from_slice(&u32::try_from(whole).map_err(|_| bad())?.to_le_bytes());
        }
        let start = out.len();
        out.extend_from_within(last.start..last.start + keep);
        out.extend_from_slice(suffix);
        last = start..out.len();
    }
    Ok(out)
}

/// Up to `most` lengths in DELTA_BINARY_PACKED, and the bytes that they take.
fn lengths(data: &[u8], most: usize) -> Option<(Vec<usize>, usize)> {
    let mut t = Thrift::new(data); // the same numbers of variable length
    let (block, minis, total) = (t.unsigned()?, t.unsigned()?, usize::try_from(t.unsigned()?).ok()?);
    let first = t.signed()?;
    let per = block.checked_div(minis)?;
    if total > most || per == 0 || per % 8 != 0 || per > 1 << 20 || minis > 1 << 10 {
        return None;
    }
    let (per, minis) = (per as usize, minis as usize);
    let mut out = Vec::new();
    let mut value = first;
    let length = |value: i64| usize::try_from(value).ok().filter(|x| *x < 1 << 31);
    if total > 0 {
        out.push(length(value)?);
    }
    let mut at = t.at;
    while out.len() < total {
        let mut t = Thrift::new(data.get(at..)?);
        let least = t.signed()?;
        at += t.at;
        let widths = data.get(at..at + minis)?;
        at += minis;
        for &width in widths {
            // The last block ends with the values; what is left of it may be missing.
            if out.len() == total {
                break;
            }
            if width > 64 {
                return None;
            }
            let bytes = per * usize::from(width) / 8;
            let take = per.min(total - out.len());
            let packed = data.get(at..)?;
            for i in 0..take {
                value = value.wrapping_add(least).wrapping_add(bits(packed, i * usize::from(width), width)? as i64);
                // Lengths are of 32 bits, and wrap around as such.
                value = i64::from(value as i32);
                out.push(length(value)?);
            }
            at = (at + bytes).min(data.len());
        }
    }
    Some((out, at))
}

/// `width` bits from bit `at` on, the lowest first.
fn bits(bytes: &[u8], at: usize, width: u8) -> Option<u64> {
    let end = at + usize::from(width);
    let mut x = 0u128;
    for (i, byte) in bytes.get(at / 8..end.div_ceil(8))?.iter().enumerate() {
        x |= u128::from(*byte) << (8 * i);
    }
    Some((x >> (at % 8)) as u64 & (u64::MAX.checked_shr(64 - u32::from(width)).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_cut_out_at_any_place() {
        let bytes = [0b1010_1100, 0b0101_0011, 0xff, 0, 1, 2, 3, 4, 5];
        assert_eq!((bits(&bytes, 2, 3), bits(&bytes, 6, 5), bits(&bytes, 0, 0)), (Some(0b011), Some(0b01110), Some(0)));
        assert_eq!(bits(&bytes, 8, 64), Some(0x0504_0302_0100_ff53));
        assert_eq!(bits(&bytes, 9, 64), None);
    }

    #[test]
    fn a_repeated_start_is_bounded() {
        // Prefix lengths 0 then 4 three times; suffix lengths 4 then 0 three times; "abcd".
        let lengths = |first: u8, least: u8| vec![128, 1, 4, 4, first, least, 0, 0, 0, 0];
        let mut data = [lengths(0, 0), lengths(8, 0)].concat();
        data.extend_from_slice(b"abcd");
        assert!(to_plain(&data, true, 4, 100, None).is_err(), "suffix lengths of 4 four times need 16 bytes");
        // block 128, 4 miniblocks, 4 values, first 0, then +4 once and 0 twice: widths 3, 0, 0, 0, values 4, 0, 0
        let prefix = [&[128, 1, 4, 4, 0, 0, 3, 0, 0, 0, 0b0000_0100][..], &[0; 11]].concat();
        let suffix = [&[128, 1, 4, 4, 8, 7, 3, 0, 0, 0, 0b0010_0000, 0b1][..], &[0; 10]].concat(); // 4, then -4 + 0, +4, +4
        let data = [&prefix[..], &suffix, b"abcd"].concat();
        let want: Vec<u8> = (0..4).flat_map(|_| [&[4, 0, 0, 0][..], b"abcd"].concat()).collect();
        assert_eq!(to_plain(&data, true, 4, 100, None), Ok(want));
        assert!(to_plain(&data, true, 4, 31, None).is_err());
        assert!(to_plain(&data, true, 3, 100, None).is_err());
    }
}
