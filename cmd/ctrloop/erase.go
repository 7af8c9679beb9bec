package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"ctrloop/ingest"
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
	JSON   bool   `name:"json" help:"Print the proof as JSON."`
}

// eraseMargin keeps off rows that may still be on their way into a server that others insert into: an
// insert is dated when it begins, and lasts a minute at most (sink.insert_timeout).
const eraseMargin = 2 * time.Minute

// topicsWithUsers hold the hash until their retention is over.
var topicsWithUsers = []string{schemas.TopicRawImpressions, schemas.TopicImpressions, schemas.TopicLabels, schemas.TopicLate, schemas.TopicDeadLetters}

// Run erases and prints the proof.
func (c *EraseUserCmd) Run(ctx context.Context, g *Globals, out *output) error {
	user := ingest.HashUser(c.Salt, c.ID)
	if c.Number {
		var err error
		if user, err = strconv.ParseUint(c.ID, 10, 64); err != nil {
			return usageError{fmt.Errorf("--number: %q: want a whole number below 2^64", c.ID)}
		}
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
	if c.JSON {
		return out.printJSON(e)
	}
	fmt.Fprintf(out.stdout, "user %d, rows inserted up to %s\n", e.User, e.Until.UTC().Format(time.RFC3339))
	for _, t := range e.Tables {
		fmt.Fprintf(out.stdout, "  %-16s %8d rows before, %d after\n      %s\n", t.Table, t.RowsBefore, t.RowsAfter, t.Query)
	}
	fmt.Fprintf(out.stdout, "stored in the table erasures; anybody may run the queries again with ctrloop sql\n")
	fmt.Fprintf(out.stdout, "topics keep the hash until their retention (kafka.retention) is over: %v\ndata sets, pairs and models hold no users\n", topicsWithUsers)
	return nil
}
