package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ctrloop/app"
	"ctrloop/ingest"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
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
	Salt   string `help:"ingest.user_salt of the instance, for users that were sent as text." default:"ctrloop" env:"CTRLOOP_USER_SALT"`
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

// Run erases and prints the proof.
func (c *EraseUserCmd) Run(ctx context.Context, g *Globals, out *output) error {
	user := ingest.HashUser(c.Salt, c.ID)
	if c.Number {
		var err error
		if user, err = strconv.ParseUint(c.ID, 10, 64); err != nil {
			return usageError{fmt.Errorf("--number: %q: want a whole number below 2^64", c.ID)}
		}
	}
	if err := c.beside(ctx); err != nil {
		return err
	}
	db, done, err := c.open(ctx, g, out, true)
	if err != nil {
		return err
	}
	defer done()
	until, err := db.Clock(ctx)
	if err != nil {
		return err
	}
	if c.DSN != "" {
		until = until.Add(-eraseMargin)
	}
	e, err := db.Erase(ctx, user, until)
	if err != nil {
		return err
	}
	p := erasureProof{Erasure: e, Beside: c.DSN != ""}
	if p.Topics, err = c.topics(ctx, time.Now()); err != nil {
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

// beside takes the addresses of an instance that runs on the folder: its engine can be written to by whoever may read the
// passwords there.
func (c *EraseUserCmd) beside(ctx context.Context) error {
	running, err := readInstance(c.Dir)
	if c.DSN != "" || err != nil || running.ClickHouse == "" {
		return nil // a server that was named; or at rest, or open says what is wrong
	}
	db, err := warehouse.Open(ctx, running.ClickHouse)
	if err != nil {
		return nil // whoever left the addresses was killed
	}
	_ = db.Close() // it was only asked whether it is there
	c.DSN, err = warehouse.OwnerDSN(filepath.Join(c.Dir, app.EngineFolder), running.ClickHouse)
	if errors.Is(err, fs.ErrNotExist) {
		return withHint(fmt.Errorf("the instance on %s has a ClickHouse of its own", c.Dir), "name it with --dsn, by a user who may write")
	}
	if c.Kafka == "" {
		c.Kafka = running.Kafka
	}
	return err
}

// erasureProof is the proof with what the warehouse does not know.
type erasureProof struct {
	warehouse.Erasure
	// Beside: something may go on inserting, so the youngest rows were left.
	Beside bool `json:"beside,omitempty"`
	// Topics that hold the hash beyond the erasure; empty: nobody was asked.
	Topics []topicRest `json:"topics,omitempty"`
}

// topicRest is a topic that holds the user's hash until its records expire.
type topicRest struct {
	Topic string `json:"topic"`
	// GoneBy is when the last record of before the erasure has been deleted, by the topic's own configuration. Missing: never.
	GoneBy *time.Time `json:"gone_by,omitempty"`
}

// topics asks the brokers for how long they keep what they have, from now on. Without brokers it returns nothing.
func (c *EraseUserCmd) topics(ctx context.Context, now time.Time) ([]topicRest, error) {
	kafka := stream.Default()
	folder := filepath.Join(c.Dir, app.KafkaFolder)
	switch _, err := os.Stat(folder); {
	case c.Kafka != "":
		kafka.Brokers = strings.Split(c.Kafka, ",")
	case c.DSN == "" && err == nil:
		broker, err := stream.StartEmbedded(stream.EmbeddedConfig{Dir: folder})
		if err != nil {
			return nil, err
		}
		defer broker.Close()
		kafka = broker.Config()
	default:
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
	fmt.Fprintf(w, "data sets, pairs and models hold no users; backups hold what they held\n")
}
