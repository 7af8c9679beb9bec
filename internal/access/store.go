package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// lookEvery is the pace at which a store looks whether its file has changed: a revoked token is refused that much later
// at most.
const lookEvery = time.Second

// Store answers whose a token is. It follows its file. Safe for concurrent use.
type Store struct {
	path string
	now  func() time.Time

	mu      sync.Mutex
	tokens  map[string]Token // by id
	own     Token            // of this process, never on disk as a hash
	looked  time.Time
	seen    stamp
	problem error // of the last look; while there is one, tokens of the file are refused
}

// stamp tells whether a file is another one than it was: a rename over it changes at least its inode's time.
type stamp struct {
	size int64
	mod  time.Time
}

// Open reads the tokens of a file, which need not exist yet.
func Open(path string, now func() time.Time) (*Store, error) {
	s := &Store{path: path, now: now}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reload()
	return s, s.problem
}

// Own draws the token of this process: everything is allowed with it, and it ends with the process. Whoever can read the
// file in which the caller puts it is the user that runs the instance.
func (s *Store) Own() (secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret, s.own = draw(LocalName, []Scope{Admin}, s.now())
	return secret
}

// Identify says whose a token is: ErrUnknown, ErrExpired or ErrRevoked where it may not be used. Another error means that
// the file cannot be read: callers must refuse.
func (s *Store) Identify(secret string) (Identity, error) {
	sum := hash(secret)
	id, shaped := idOf(secret)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own.ID != "" && s.own.is(sum) {
		i := LocalUser("")
		i.Token = s.own.ID
		return i, nil
	}
	s.reload()
	if s.problem != nil {
		return Identity{}, s.problem
	}
	t := s.tokens[id]
	if !shaped || !t.is(sum) { // an unknown id is compared too: with an empty hash, which nothing has
		return Identity{}, ErrUnknown
	}
	if err := t.check(s.now()); err != nil {
		return Identity{}, err
	}
	return Identity{Name: t.Name, Token: t.ID, Scopes: t.Scopes}, nil
}

// Problem is why the file cannot be read, nil where it can.
func (s *Store) Problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reload()
	return s.problem
}

// reload reads the file where it has changed. Called with mu held.
func (s *Store) reload() {
	now := s.now()
	if !s.looked.IsZero() && now.Sub(s.looked) < lookEvery && !now.Before(s.looked) {
		return
	}
	s.looked = now
	var at stamp
	info, err := os.Stat(s.path)
	switch {
	case err == nil:
		at = stamp{info.Size(), info.ModTime()}
	case !errors.Is(err, fs.ErrNotExist):
		s.problem = fmt.Errorf("read tokens: %w", err)
		return
	}
	if s.tokens != nil && s.problem == nil && at == s.seen {
		return
	}
	ts, err := Load(s.path)
	if err != nil {
		s.problem = err
		return
	}
	s.tokens, s.seen, s.problem = make(map[string]Token, len(ts)), at, nil
	for _, t := range ts {
		s.tokens[t.ID] = t
	}
}
