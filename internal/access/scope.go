package access

import (
	"fmt"
	"slices"
	"strings"
)

// Scope is what a token allows. The list is closed.
type Scope string

// Scopes. Admin includes all others; no other one includes another.
const (
	EventsWrite      Scope = "events:write"      // events at the edge, exposures
	AdsDecide        Scope = "ads:decide"        // decisions, completions of the prompt models
	Read             Scope = "read"              // everything that only shows
	ExperimentsWrite Scope = "experiments:write" // experiments, hold-outs, webhooks sent again
	ModelsPromote    Scope = "models:promote"    // what is served: versions, creatives and their scores
	Admin            Scope = "admin"             // backup, profiles, the configuration in effect
	// Public is the scope of a route that needs no token. No token has it.
	Public Scope = "public"
)

// Scopes lists what a token may have, in the order in which they are shown.
func Scopes() []Scope {
	return []Scope{EventsWrite, AdsDecide, Read, ExperimentsWrite, ModelsPromote, Admin}
}

// ParseScopes reads a list with commas between, such as "read,experiments:write".
func ParseScopes(list string) ([]Scope, error) {
	var out []Scope
	for name := range strings.SplitSeq(list, ",") {
		s := Scope(strings.TrimSpace(name))
		if !slices.Contains(Scopes(), s) {
			return nil, fmt.Errorf("no scope %q: want some of %v, with commas between", s, Scopes())
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}

// Identity is who sends a request.
type Identity struct {
	Name   string // as the control log shows it: the token's name, or LocalName
	Token  string // id of the token; empty where none was needed
	Scopes []Scope
	Local  bool // a user of this machine: with the token of the instance's folder, or on loopback without one
}

// LocalName is the actor of requests from this machine that carry no name.
const LocalName = "local"

// May says whether the identity has a scope. Everybody has Public.
func (i Identity) May(s Scope) bool {
	return s == Public || slices.Contains(i.Scopes, s) || slices.Contains(i.Scopes, Admin)
}

// LocalUser is the identity of somebody on this machine, who may do everything; user may be empty.
func LocalUser(user string) Identity {
	name := LocalName
	if user != "" {
		name += "/" + user
	}
	return Identity{Name: name, Scopes: []Scope{Admin}, Local: true}
}
