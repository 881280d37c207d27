"""What issue_slots.py counts, on machine code small enough to count by hand."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import issue_slots


def code(name, *lines):
    """Text as nvdisasm -c prints it: labels end in a colon."""
    out, at = [f"\t.section\t.text.{name},\"ax\",@progbits", f".text.{name}:"], 0
    for line in lines:
        out.append(line if line.endswith(":") else f"        /*{at:04x}*/                   {line} ;")
        at += 16
    return "\n".join(out) + "\n"


# One warp tile of 16 queries and 16 keys at head_dim 16, forward: 4 HMMA, 0.5 LDGSTS (so none here); the mask is jumped over and
# the inner loop of one HMMA and one LDSM goes round four times.
TILE = ("S2R R0, SR_TID.X", ".L_tile:", "BAR.SYNC 0x0", "@P0 BRA `(.L_inner)", "FSEL R1, R1, R2, P1", "FSEL R1, R1, R2, P1",
        ".L_inner:", "LDSM.16.M88.4 R4, [R2]", "HMMA.16816.F32.BF16 R8, R4, R5, R8", "@P1 BRA `(.L_inner)", "IADD3 R0, R0, 0x1, RZ",
        "@!P2 CALL.REL.NOINC `(.L_out)", "BRA `(.L_tile)", ".L_out:", "EXIT", "NOP", ".L_x:", "BRA `(.L_x)")
# A loop over packs of 8 bf16: two loads, a store; a way element by element, with more instructions, beside the wide one.
PACKS = ("S2R R0, SR_TID.X", ".L_loop:", "@P0 BRA `(.L_narrow)", "LDG.E.128 R4, [R2]", "LDG.E.128.CONSTANT R8, [R2]", "FMUL R4, R4, R8",
         "@P3 CALL.REL.NOINC `($__internal_slowpath)", "STG.E.128 [R2], R4", "BRA `(.L_next)", ".L_narrow:", "LDG.E.U16 R4, [R2]",
         "STG.E.U16 [R2], R4", ".L_next:", "BRA.U UP0, `(.L_loop)", "EXIT")


class IssueSlotsTest(unittest.TestCase):
    def test_a_tile_by_its_cheapest_way_that_does_all_the_work(self):
        made = issue_slots.kernels(code("attention_fwd_hd16_bf16", *TILE))["attention_fwd_hd16_bf16"]
        # barrier and branch, 4 x (LDSM, HMMA, branch), add, call (not taken, but issued), branch; FSEL only at the border
        self.assertEqual(issue_slots.per_pair(made, (2, 16, 1, 16)), (2 + 12 + 3) / 256)
        self.assertIsNone(issue_slots.per_pair(made, (2, 128, 1, 16)), "no LDGSTS: nothing loads the next tile")

    def test_an_element_by_the_wide_way(self):
        made = issue_slots.kernels(code("swiglu_fwd_bf16", *PACKS))["swiglu_fwd_bf16"]
        self.assertEqual(issue_slots.per_element(made, "swiglu_fwd_bf16"), 8 / 8)
        unknown = issue_slots.per_element(made, "news_bf16")
        self.assertIn("no entry in ELEMENT", unknown)
        self.assertEqual(issue_slots.per_element(issue_slots.blocks("\n".join(PACKS[:1])), "loss_f32"), None)

    def test_the_page_is_read_kept_and_held_against(self):
        row = lambda slots: {"kernel": "a_bf16", "file": "a.cu", "target": "80", "slots": slots, "unit": "pair"}
        page = f"{issue_slots.BEGIN}\n{issue_slots.table([row(2.0)], '', ['80'], True)}\n{issue_slots.END}"
        page = f"{issue_slots.BEGIN}\n{issue_slots.table([row(1.0)], page, ['80'], False)}\n{issue_slots.END}"
        self.assertEqual(issue_slots.read(page), {("a_bf16", "80 at 72302e9"): 2.0, ("a_bf16", "80"): 1.0})
        self.assertEqual(issue_slots.grown([row(1.05)], page), [])
        self.assertEqual(len(issue_slots.grown([row(1.06)], page)), 1)
        self.assertEqual(len(issue_slots.grown([{**row(1.0), "kernel": "b_bf16"}], page)), 1, "a new kernel")
        self.assertEqual(len(issue_slots.grown([row("no way")], page)), 1)


if __name__ == "__main__":
    unittest.main()
