package schemas

import "time"

// Names of the topics. The suffix is the schema's major version: an incompatible change is a new topic.
const (
	TopicRawImpressions = "raw.impressions"
	TopicRawClicks      = "raw.clicks"
	TopicImpressions    = "imp.v1"
	TopicClicks         = "clk.v1"
	TopicLabels         = "labels.v1"
	TopicAudit          = "audit.v1"
	TopicLate           = "late.v1"
	TopicDeadLetters    = "dlq.v1"
	TopicEvidence       = "evidence.v1"
	TopicPairs          = "pairs.v1"
	TopicCreatives      = "creatives.v1"
	TopicControl        = "control.v1"
	TopicSnapshots      = "control.snapshots.v1"
)

// Headers of records.
const (
	// HeaderPunctuation marks a record of imp.v1 or clk.v1 whose value is an eventpb.Punctuation.
	HeaderPunctuation = "ctrloop-punctuation"
)

// Topic is what a topic must look like before a service uses it.
type Topic struct {
	Name string
	// Partitions is fixed for control.v1 (1: its order is the order of the world); 0 takes the
	// configured count. imp.v1, clk.v1, labels.v1 and evidence.v1 must have the same count: join and evidence go
	// partition by partition.
	Partitions int32
	// AnyCount: the topic is made with Partitions and taken as it is, since nothing depends on how many it has. Its number may
	// be raised while everything runs.
	AnyCount bool
	// Compacted topics keep the last record of each key for good.
	Compacted bool
	// Placed: a record lies in the partition that its writer names, also if it has a key. In all others the key decides.
	Placed bool
	// Retention of the others; 0 takes the configured one, negative keeps everything.
	Retention time.Duration
}

// Topics lists every topic of the system. The embedded broker creates them at start-up; on a cluster
// `ctrloop migrate` does.
func Topics() []Topic {
	return []Topic{
		{Name: TopicRawImpressions, AnyCount: true}, {Name: TopicRawClicks, AnyCount: true},
		{Name: TopicImpressions}, {Name: TopicClicks}, {Name: TopicLabels},
		{Name: TopicAudit, AnyCount: true}, {Name: TopicLate, AnyCount: true}, {Name: TopicDeadLetters, AnyCount: true},
		{Name: TopicEvidence, Compacted: true, Placed: true},
		{Name: TopicPairs, AnyCount: true},
		{Name: TopicCreatives, Partitions: 1, Compacted: true},
		{Name: TopicControl, Partitions: 1, Retention: -1},
		{Name: TopicSnapshots, Partitions: 1, Compacted: true},
	}
}

// LateReason says why the join could not turn an event into a label of its own. The list is closed;
// each reason has a metric.
type LateReason string

// Reasons of late.v1.
const (
	LateImpression LateReason = "impression_after_close" // its window had closed before it arrived
	LateClick      LateReason = "click_after_window"     // beyond the window, impression known: a corrected label follows
	LateOrphan     LateReason = "click_without_impression"
	// LateClickAfterClose: the bucket of its impression is gone, so nobody can tell whether there was one.
	LateClickAfterClose LateReason = "click_after_close"
)

// DeadLetterReason says why ingest could not use a record. The list is closed; each reason has a metric.
type DeadLetterReason string

// Reasons of dlq.v1.
const (
	DeadMalformed     DeadLetterReason = "malformed"
	DeadUnknownSchema DeadLetterReason = "unknown_schema"
	DeadOversized     DeadLetterReason = "oversized"
	DeadBadID         DeadLetterReason = "bad_id"
	DeadBadTime       DeadLetterReason = "bad_time"
	DeadBadField      DeadLetterReason = "bad_field"
)
