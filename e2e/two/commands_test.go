package two

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// people give commands to either serving process, each with a note of its own by which it is found on the control log.
type people struct {
	c    *cluster
	rng  *rand.Rand
	sent []command
	due  time.Time
	// promoted: a person has made a version champion.
	promoted bool
}

type command struct {
	note string
	what string
	fate fate
}

// fate of a command as its sender knows it.
type fate string

const (
	acknowledged fate = "acknowledged"
	refused      fate = "refused" // or never sent
	unknown      fate = "unknown" // the answer was lost
)

// pause between two commands.
const pause = 400 * time.Millisecond

// perhaps gives a command, if it is time for one. The first end of an experiment is a promotion, so that there is another champion.
func (p *people) perhaps() {
	if time.Now().Before(p.due) {
		return
	}
	p.due = time.Now().Add(pause)
	asked := p.c.of("serving")[p.rng.IntN(2)]
	x := p.running(asked)
	if x.ID == "" || p.rng.IntN(2) == 0 {
		p.give(asked, "PUT", "/v1/experiments/holdouts/"+logical, map[string]any{"share": float64(1+p.rng.IntN(50)) / 1000})
		return
	}
	verb := "pause"
	switch {
	case x.Paused:
		verb = "resume"
	case p.rng.IntN(12) == 0 && (!p.promoted || p.rng.IntN(2) == 0):
		verb = "promote"
	case p.rng.IntN(24) == 0 && p.promoted:
		verb = "rollback"
	}
	if p.give(asked, "POST", "/v1/experiments/"+x.ID+"/"+verb, map[string]any{}) == acknowledged && verb == "promote" {
		p.promoted = true
	}
}

// give sends a command and remembers what it knows of its fate.
func (p *people) give(asked *node, method, path string, body map[string]any) fate {
	note := fmt.Sprintf("two %d", len(p.sent))
	body["note"] = note
	raw, err := json.Marshal(body)
	if err != nil {
		p.c.t.Fatal(err)
	}
	c := command{note, path[strings.LastIndex(path, "/")+1:], acknowledged}
	switch err := asked.call(method, "api", path, raw, nil); {
	case errors.Is(err, errRefused), errors.Is(err, errUnreached):
		c.fate = refused
	case err != nil:
		c.fate = unknown
	}
	p.sent = append(p.sent, c)
	return c.fate
}

// experiment as the API lists it.
type experiment struct {
	ID      string `json:"id"`
	Running bool   `json:"running"`
	Paused  bool   `json:"paused"`
}

// running is the experiment that runs, as a process sees it.
func (p *people) running(n *node) experiment {
	var list struct{ Experiments []experiment }
	if n.get("api", "/v1/experiments", &list) != nil {
		return experiment{}
	}
	for _, x := range list.Experiments {
		if x.Running {
			return x
		}
	}
	return experiment{}
}

// String is what has become of the commands.
func (p *people) String() string {
	n := map[fate]int{}
	for _, x := range p.sent {
		n[x.fate]++
	}
	return fmt.Sprintf("commands: %d acknowledged, %d refused, %d unknown", n[acknowledged], n[refused], n[unknown])
}
