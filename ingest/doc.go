// Package ingest lets events in: the HTTP edge (Edge) writes them to the raw topics, the service (Service)
// makes of the raw topics what the join reads.
//
// # Edge: POST /v1/events
//
// The body is one of
//
//	Content-Type             body
//	application/json         an object, an array of objects, or objects one after the other
//	application/x-ndjson     one object a line; a broken line spoils only itself
//	application/x-protobuf   eventpb.AppendBody, event after event: per event one tag byte (0x0a impression,
//	                         0x12 click, 0x1a watermark), the length as a varint, the message of event.proto
//
// with Content-Encoding gzip, zstd or none. An object has a "type" and the field names of event.proto:
//
//	{"type":"impression","id":"0190...","product":"p","creative":"c-1","user":"alice","propensity":0.5,"arm_share":0.5,...}
//	{"type":"click","impression_id":"0190...","id":"any","time_ms":1700000000000}
//	{"type":"watermark","time_ms":1700000000000}
//
// Ids are UUIDv7 (or ULID) text; request_id and a click's id are any text of at most 128 bytes. user is a
// number, taken as it is, or a string, which is hashed with the configured salt; null, 0 and "" are nobody. Unknown fields are
// refused here (a misspelt field would be lost silently) and ignored in the raw topics. What the decoder would change
// is refused in both: bytes that are no UTF-8, halves of characters, our names in another case or twice.
//
// An impression or a click is marked as a bot's by "bot":true, or by its "user_agent", which is judged (IsBot) and not kept.
// A click's mark reaches the label that rests on it.
// What is marked is joined and stored like all else, and left out of every rate.
//
// A watermark promises that no event older than time_ms will follow: the end of a replay, or of a batch of one. It
// is forwarded behind every event that was acknowledged before it was sent. It must be sent alone or last in a body.
//
//	200  {"accepted":n}                                  every event is acknowledged by Kafka
//	207  {"accepted":n,"rejected":[{"index","reason","detail"}],"rejected_total":m}
//	400  the same with accepted 0, or {"error":"what, why, what to do"} for a body that cannot be read
//	413, 415  body too large, type or encoding unknown
//	429  too much in flight: Retry-After says when to come back
//	503  Kafka has not acknowledged: send the same body again, ids make that harmless
//
// # Raw topics
//
// One event a record, of any kind in either topic: a JSON object as above (type may be absent: the topic
// tells), or a message of event.proto behind the Confluent header: 0x00, schema id (4 bytes, big endian),
// message index (0x00 Impression; 0x02 0x02 Click; 0x02 0x04 Punctuation, a watermark). A watermark
// counts once it was read from every partition of both topics, so a writer puts it into all of them, as
// the edge does.
//
// # Service
//
// In one transaction per step, exactly once: read, validate, merge, write. The merge (see merger) takes
// the oldest event over all raw partitions next, because partitions that are read at different speed would
// otherwise be minutes of event time apart and the laggard's events late. A partition that has been read to
// its end, by the word of a broker that is not older than IdleAfter, holds up nobody, unless clock is
// "event" and watermarks have been seen: then it is as far as
// its last watermark, and newer events wait until it gives something, without end.
//
// Events go to imp.v1 and clk.v1 by impression id, with record time = event time. What cannot be used goes
// to dlq.v1 with a reason. Into every partition of both topics goes the low watermark, as punctuation,
// whenever it has advanced: the place of the merge, or a watermark event beyond it. Order within the merge
// is as good as the order of the sources; allowed lateness in the join covers the rest.
//
// With clock "wall", an event from the future beyond the allowed skew would drag the join's watermark with
// it and make everything else late: a click's time is set back to now plus skew; an impression cannot be
// set back, its id carries its time and its clicks name that id, so it goes to dlq.v1. With clock "event"
// times are not compared with the wall clock at all. The edge refuses such an impression at once.
//
// With clock "wall" and everything read to its end, the low watermark follows the wall clock, less the allowed skew, from
// the first event on: the windows of a quiet shop close.
//
// A session says how many raw partitions there are before its first event, so that the join waits for all of them.
//
// Several instances share the raw partitions, in one group under different instance names. Punctuation names the raw
// partitions that it is a promise for, and how many there are, so the join waits for those of every instance, and for
// those that have just lost theirs. An instance that takes over a partition which lags behind its own promises less for
// it until it has caught up.
package ingest
