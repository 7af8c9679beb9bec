package window

import "ctrloop/schemas"

// Block is how many ids Warm takes at once: as many as a core waits for side by side.
const Block = 16

// Warm looks at what Insert or Click will need of these impressions, at most Block of them, and changes nothing. The
// state is larger than any cache, and each step of a lookup (bucket, index, record) waits for the one before; done for
// several ids at once, a core waits for all of them together.
func (w *Window) Warm(ids []schemas.ImpressionID) {
	var xs [Block]struct {
		*bucket
		h, hot, cold uint64
	}
	ids = ids[:min(len(ids), Block)]
	for i := range ids {
		id := &ids[i]
		b := w.peek(id.UnixMilli() / w.cfg.BucketMS)
		if b == nil {
			continue
		}
		x := &xs[i]
		x.bucket, x.h = b, w.hashID(id.Hi(), id.Lo())
	}
	for i := range ids {
		x := &xs[i]
		if x.bucket == nil {
			continue
		}
		if n := len(x.byImp.slots); n > 0 {
			x.hot = x.byImp.slots[x.byImp.place(x.h)]
		}
		if c := x.base; c != nil {
			x.cold = c.byImp.slots[c.byImp.place(x.h)]
		}
	}
	for i := range ids {
		x := &xs[i]
		if s := x.hot; s != 0 && s>>32 == x.h>>32 {
			w.warm ^= x.arena[position(s)]
		}
		if s := x.cold; s != 0 && s>>32 == x.h>>32 && x.base.data != nil {
			w.warm ^= x.base.data[position(s)]
		}
	}
}
