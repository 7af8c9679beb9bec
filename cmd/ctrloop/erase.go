package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/pairer/evidence/stage"
	"ctrloop/schemas"
)

// EraseCmd is `ctrloop erase`.
type EraseCmd struct {
	User EraseUserCmd `cmd:"" help:"Delete a user's rows in every table that has users, and print and store the proof."`
}

// EraseUserCmd is `ctrloop erase user`.
type EraseUserCmd struct {
	ID string `arg:"" help:"The user, as it was sent to the edge."`
	storeFlags
	Salt   string `help:"ingest.user_salt of the instance, for users that were sent as text. Default: the configuration's." env:"CTRLOOP_USER_SALT"`
	Former bool   `name:"former-salt" help:"The instance had another salt once, and --salt is that one."`
	Number bool   `help:"The user was sent as a number, or ID is the hash itself."`
	Kafka  string `help:"Ask these brokers how long their topics keep the hash: HOST:PORT,.... Default: the embedded one of the instance." placeholder:"HOST:PORT"`
	JSON   bool   `name:"json" help:"Print the proof as JSON."`
}

// eraseMargin keeps off rows that may still be on their way into a server that others insert into: an
// insert is dated when it begins, and lasts a minute at most (sink.insert_timeout).
const eraseMargin = 2 * time.Minute

// topicsWithUsers hold the hash until their retention is over.
var topicsWithUsers = []string{
	schemas.TopicRawImpressions,
	schemas.TopicImpressions,
	schemas.TopicLabels,
	schemas.TopicLate,
	schemas.TopicDeadLetters,
}

// person is the user whom the command names. 0 and the empty id stand for all who were sent without a name, so they are refused.
func (c *EraseUserCmd) person(salt string) (warehouse.Person, error) {
	if !c.Number {
		if c.ID == "" {
			return warehouse.Person{}, usageError{errors.New("the user is empty: that is everybody who was sent without a name, and no person")}
		}
		return warehouse.Person{User: ingest.HashUser(salt, c.ID), Text: c.ID}, nil
	}
	user, err := strconv.ParseUint(c.ID, 10, 64)
	switch {
	case err != nil:
		return warehouse.Person{}, usageError{fmt.Errorf("--number: %q: want a whole number below 2^64", c.ID)}
	case user == 0:
		return warehouse.Person{}, usageError{errors.New("--number 0: 0 is everybody who was not named, and no person")}
	}
	return warehouse.Person{User: user}, nil
}

// Run erases and prints the proof.
func (c *EraseUserCmd) Run(ctx context.Context, g *Globals, out *output) error {
	cfg, err := c.load(true)
	if err != nil {
		return err
	}
	c.Salt = cmp.Or(c.Salt, cfg.Salt())
	who, err := c.person(c.Salt)
	if err != nil {
		return err
	}
	running, err := c.beside(ctx)
	if err != nil {
		return err
	}
	c.Kafka = cmp.Or(c.Kafka, running.Kafka)
	db, done, err := c.open(ctx, g, out, true)
	if err != nil {
		return err
	}
	defer done()
	if err := c.checkSalt(ctx, db); err != nil {
		return err
	}
	until, err := db.Clock(ctx)
	if err != nil {
		return err
	}
	if c.DSN != "" {
		until = until.Add(-eraseMargin)
	}
	p := erasureProof{Beside: c.DSN != ""}
	kafka, stop, known, err := c.topicsAt(ctx, c.Kafka, g.Home, cfg.Kafka.Config)
	if err != nil {
		return err
	}
	defer stop()
	var tell warehouse.Tell
	producer, err := tellEvidence(ctx, kafka, known)
	if err != nil {
		return withHint(err, "nothing was erased: evidence.v1 must be told first; run it again when the brokers answer")
	}
	if producer != nil {
		defer producer.Close()
		tell = func(ctx context.Context, erasure string, cells []warehouse.ErasedEvidence) error {
			p.Cells = new(len(cells))
			return stage.TellErasure(ctx, producer, erasure, cells)
		}
	}
	if p.Erasure, err = db.EraseAndTell(ctx, who, until, tell); errors.Is(err, warehouse.ErrNobody) {
		return withHint(err, "was the id sent so, letter by letter? as a number (--number)? is it another instance's? "+
			"Events on their way are not seen: ask again in some minutes. No proof was stored")
	}
	if err != nil {
		return err
	}
	if p.InClear, err = db.InClear(ctx, who); err != nil {
		return err
	}
	if p.Topics, err = topicsRest(ctx, kafka, known, time.Now()); err != nil {
		return withHint(
			fmt.Errorf("the rows are gone from the warehouse; how long the topics keep the hash: %w", err),
			"run it again when the brokers answer, with --kafka where they are not the instance's own",
		)
	}
	if c.JSON {
		return out.printJSON(p)
	}
	p.print(out.stdout)
	return nil
}

// checkSalt refuses a salt that is not the instance's: with it the user would have another hash, and no row would be found.
func (c *EraseUserCmd) checkSalt(ctx context.Context, db *warehouse.DB) error {
	if c.Number || c.Former {
		return nil
	}
	want, err := db.SaltCheck(ctx)
	if err != nil || want == 0 || want == ingest.SaltCheck(c.Salt) { // 0: of a version that did not say
		return err
	}
	return withHint(errors.New("the salt is not the one that this instance hashes users with"),
		"give it as --salt, as CTRLOOP_USER_SALT or with --config; --former-salt if it was this one once")
}

// erasureProof is the proof with what the warehouse does not know.
type erasureProof struct {
	warehouse.Erasure
	// Beside: something may go on inserting, so the youngest rows were left.
	Beside bool `json:"beside,omitempty"`
	// Cells of evidence.v1 that the user's labels were taken out of; missing: no broker was told, or an earlier run has told it.
	Cells *int `json:"evidence_cells,omitempty"`
	// InClear are commands of control.v1 that name the user in clear: forced units of older versions.
	InClear uint64 `json:"in_clear,omitempty"`
	// Topics that hold the hash beyond the erasure; empty: nobody was asked.
	Topics []topicRest `json:"topics,omitempty"`
}

// topicRest is a topic that holds the user's hash until its records expire.
type topicRest struct {
	Topic string `json:"topic"`
	// GoneBy is when the last record of before the erasure has been deleted, by the topic's own configuration. Missing: never.
	GoneBy *time.Time `json:"gone_by,omitempty"`
}

// topicsRest asks the brokers for how long they keep what they have, from now on. Without brokers it returns nothing.
func topicsRest(ctx context.Context, kafka stream.Config, known bool, now time.Time) ([]topicRest, error) {
	if !known {
		return nil, nil
	}
	kept, err := stream.TopicRetentions(ctx, kafka, topicsWithUsers...)
	if err != nil {
		return nil, err
	}
	out := make([]topicRest, 0, len(topicsWithUsers))
	for _, topic := range topicsWithUsers {
		r := topicRest{Topic: topic}
		if k := kept[topic]; k.Bounded {
			r.GoneBy = new(now.Add(k.Longest).UTC().Truncate(time.Minute))
		}
		out = append(out, r)
	}
	return out, nil
}

func (p erasureProof) print(w io.Writer) {
	fmt.Fprintf(w, "user %d, rows inserted up to %s\n", p.User, p.Until.UTC().Format(time.RFC3339))
	for _, t := range p.Tables {
		fmt.Fprintf(w, "  %-16s %8d rows before, %d after\n      %s\n", t.Table, t.RowsBefore, t.RowsAfter, t.Query)
	}
	if p.Beside {
		fmt.Fprintf(w, "rows that are younger, and those that the join makes of events on their way, are left for another run\n")
	}
	fmt.Fprintf(w, "stored in the table erasures; anybody may run the queries again with ctrloop sql\n")
	if p.Topics == nil {
		fmt.Fprintf(w, "topics keep the hash until their retention is over; no broker was asked for it (--kafka): %v\n", topicsWithUsers)
	} else {
		fmt.Fprintf(w, "topics keep the hash; its last record is gone, by the configuration of each topic and unless an event is dated ahead,\n")
	}
	for _, t := range p.Topics {
		if t.GoneBy == nil {
			fmt.Fprintf(w, "  %-16s NEVER: the topic deletes nothing (retention.ms; kafka.retention is negative where ctrloop made it)\n", t.Topic)
			continue
		}
		fmt.Fprintf(w, "  %-16s by %s\n", t.Topic, t.GoneBy.Format("2006-01-02 15:04 MST"))
	}
	switch {
	case p.Cells != nil:
		fmt.Fprintf(w, "evidence.v1 was told: the user's labels were taken out of %d cells\n", *p.Cells)
	case p.Topics == nil:
		fmt.Fprintf(w, "evidence.v1 was NOT told, as no broker is known (--kafka): it goes on counting the user's labels, without a name\n")
	}
	if p.InClear > 0 {
		fmt.Fprintf(w, "%d commands of %s name the user in clear: units that an older version forced into an arm. Nothing is deleted "+
			"from that log\n",
			p.InClear, schemas.TopicControl)
	}
	fmt.Fprintf(w, "data sets, pairs and models hold no users; backups hold what they held\n")
}
