package window

import (
	"ctrloop/schemas"
)

// Hash is equal for equal states: watermark, both maximum times, sources of punctuation, open buckets with their impressions, clicks
// and waiting clicks. It does not depend on the interleaving of the two inputs nor on the seed. It is a sum
// over what is in the state, so it is kept up to date at every change and costs nothing here.
func (w *Window) Hash() uint64 {
	return w.hash + mix(uint64(w.watermark)^mix(uint64(w.max[0])^mix(uint64(w.max[1])+1))) + w.sources[0].hash(0) + w.sources[1].hash(1)
}

func (w *Window) hashID(hi, lo uint64) uint64 {
	return mix(hi ^ w.cfg.Seed ^ mix(lo+0x9e3779b97f4a7c15))
}

func (w *Window) hashRecord(b *bucket, rid recordID) uint64 {
	id := rid.of(b.startMS)
	return w.hashID(id.Hi(), id.Lo())
}

func (b *bucket) hashPending(c *pendingClick) uint64 {
	id := c.id.of(b.startMS)
	return mix(id.Hi() ^ mix(id.Lo()^mix(uint64(c.timeMS)^mix(uint64(c.offset)+1))))
}

// hashClicks is the part of an impression in its bucket's hash that clicks change.
func hashClicks(id schemas.ImpressionID, e extra) uint64 {
	if e.clicks == 0 && e.late == 0 {
		return 0
	}
	h := uint64(e.clicks)
	if e.late != 0 {
		h ^= mix(uint64(e.delay)) + uint64(e.late)<<32
	}
	return mix(id.Lo() ^ mix(id.Hi()^mix(h)))
}

// rehash adds to the hash of a bucket, and so of the state; all arithmetic wraps.
func (w *Window) rehash(b *bucket, delta uint64) {
	b.hash += delta
	w.hash += delta
}
