package creatives

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
	"ctrloop/schemas"
)

const maxListed = 10_000

// Bounds of bodies, in bytes: of a job with a list of products, and of a score.
const (
	maxJobBody   = 8 << 20
	maxScoreBody = 64 << 10
)

// Routes are this package's calls:
//
//	POST /v1/creatives            {"products": [..] | "all", "version": .. , "per_product": .., "seed": ..} -> 202, progress
//	GET  /v1/creatives/jobs/{id}  -> progress
//	DELETE /v1/creatives/jobs/{id}  cancels -> progress; 409: it has ended
//	GET  /v1/creatives            ?product= &version= &limit= -> list
//	GET  /v1/creatives/{id}       -> one; {id}.png: its picture
//	PUT  /v1/creatives/{id}/matching  {"score": 0..1, "judge": ..} -> the creative; for judges outside of this process
func (s *Service) Routes() []httpapi.Route {
	return []httpapi.Route{
		{Method: http.MethodPost, Path: "/v1/creatives", Scope: access.ModelsPromote, Handle: s.postJob},
		{Method: http.MethodGet, Path: "/v1/creatives/jobs/{id}", Scope: access.Read, Handle: s.getJob},
		{Method: http.MethodDelete, Path: "/v1/creatives/jobs/{id}", Scope: access.ModelsPromote, Handle: s.deleteJob},
		{Method: http.MethodGet, Path: "/v1/creatives", Scope: access.Read, Handle: s.list},
		// Pictures are for everybody, the rest is not: get asks for the scope read.
		{Method: http.MethodGet, Path: "/v1/creatives/{id}", Scope: access.Public, Handle: s.get},
		{Method: http.MethodPut, Path: "/v1/creatives/{id}/matching", Scope: access.ModelsPromote, Handle: s.putMatching},
	}
}

func (s *Service) postJob(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Products   json.RawMessage `json:"products"`
		Version    string          `json:"version"`
		PerProduct int             `json:"per_product"`
		Seed       uint64          `json:"seed"`
	}
	if err := httpapi.ReadJSON(r, maxJobBody, &body); err != nil {
		httpapi.Fail(w, err)
		return
	}
	req := Request{Model: body.Version, PerProduct: body.PerProduct, Seed: body.Seed}
	if req.Model == "" {
		req.Model = "prompt"
	}
	if all := string(body.Products); all != `"all"` && all != "" && all != "null" {
		if err := json.Unmarshal(body.Products, &req.Products); err != nil || len(req.Products) == 0 {
			httpapi.Fail(w, httpapi.Refuse(http.StatusBadRequest, `want "all" or a list of ids`, "products is neither"))
			return
		}
	}
	p, err := s.Submit(req)
	switch {
	case errors.Is(err, ErrBadRequest):
		httpapi.Fail(w, httpapi.Refuse(http.StatusBadRequest, "GET /v1/models lists versions", "%v", err))
	case errors.Is(err, ErrFull):
		full := httpapi.Refuse(http.StatusTooManyRequests, "come back after Retry-After, or cancel a job", "%v", err)
		full.RetryAfter = time.Minute
		httpapi.Fail(w, full)
	case err != nil:
		s.limited.Event(zerolog.ErrorLevel, "job").Err(err).Msg("job could not be queued")
		httpapi.Fail(w, err)
	default:
		w.Header().Set("Location", "/v1/creatives/jobs/"+p.ID)
		httpapi.Reply(w, http.StatusAccepted, p)
	}
}

func (s *Service) getJob(w http.ResponseWriter, r *http.Request) {
	p, ok := s.Job(r.PathValue("id"))
	if !ok {
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "POST /v1/creatives answers with an id", "no job %q", r.PathValue("id")))
		return
	}
	httpapi.Reply(w, http.StatusOK, p)
}

func (s *Service) deleteJob(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if p, ok := s.Cancel(id); ok {
		httpapi.Reply(w, http.StatusOK, p)
		return
	}
	if p, ok := s.Job(id); ok {
		httpapi.Fail(w, httpapi.Refuse(http.StatusConflict, "there is nothing to cancel", "job %q has ended already: it is %s", id, p.State))
		return
	}
	httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "POST /v1/creatives answers with an id", "no job %q", id))
}

func (s *Service) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	limit := 1000
	if l := q.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil || n < 1 || n > maxListed {
			httpapi.Fail(w, httpapi.Refuse(http.StatusBadRequest, fmt.Sprintf("want 1 to %d", maxListed), "limit %q", l))
			return
		}
		limit = n
	}
	out := s.lib.Now().List(q.Get("product"), q.Get("version"), limit)
	if out == nil {
		out = []schemas.Creative{}
	}
	httpapi.Reply(w, http.StatusOK, map[string]any{"creatives": out})
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) {
	id, picture := strings.CutSuffix(r.PathValue("id"), ".png")
	if !picture {
		if err := httpapi.Require(r, access.Read); err != nil {
			httpapi.Fail(w, err)
			return
		}
	}
	now := s.lib.Now()
	c, ok := now.Get(id)
	switch {
	case !ok:
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/creatives lists them", "no creative %q", id))
		return
	case !picture:
		httpapi.Reply(w, http.StatusOK, c)
		return
	case now.Stopped(id) != "": // pages that have its address already must not show it either; why is not for everybody
		w.Header().Set("Cache-Control", "no-store")
		httpapi.Fail(w, httpapi.Refuse(http.StatusGone, "ask /v1/decide for another one", "creative %q is blocked", id))
		return
	}
	file, err := s.store.Bytes(c.Asset)
	if err != nil {
		s.limited.Event(zerolog.ErrorLevel, "picture").Err(err).Str("creative", id).Msg("picture is missing")
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "make it again with POST /v1/creatives", "the picture of %q is not in the store", id))
		return
	}
	// The id is a digest of the file: what it names never changes.
	h := w.Header()
	h.Set("Content-Type", "image/png")
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("ETag", `"`+c.Asset+`"`)
	if r.Header.Get("If-None-Match") == `"`+c.Asset+`"` {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(file)
}

// maxJudgeName bounds a judge's name, in bytes.
const maxJudgeName = 100

// putMatching takes a judge's score of a creative, in the place of the one it had.
func (s *Service) putMatching(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Score *float64 `json:"score"`
		Judge string   `json:"judge"`
	}
	if err := httpapi.ReadJSON(r, maxScoreBody, &body); err != nil {
		httpapi.Fail(w, err)
		return
	}
	if body.Score == nil || !(*body.Score >= 0 && *body.Score <= 1) || body.Judge == "" || len(body.Judge) > maxJudgeName {
		httpapi.Fail(w, httpapi.Refuse(http.StatusBadRequest, fmt.Sprintf("want a score from 0 to 1 and the judge's name of at most %d bytes",
			maxJudgeName), "the score or the judge is missing or out of range"))
		return
	}
	if s.judge != nil && body.Judge == s.judge.Name() {
		httpapi.Fail(w, httpapi.Refuse(http.StatusBadRequest, "take another name",
			"judge %q is the built-in one: scores under its name are its own", body.Judge))
		return
	}
	s.writes.Lock()
	defer s.writes.Unlock()
	c, ok := s.lib.Stored(r.PathValue("id"))
	if !ok {
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/creatives lists them", "no creative %q", r.PathValue("id")))
		return
	}
	c.Matching, c.MatchingJudge = *body.Score, body.Judge
	if err := s.pub.Publish(r.Context(), c); err != nil {
		s.limited.Event(zerolog.ErrorLevel, "score").Err(err).Str("creative", c.ID).Msg("score could not be published")
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "send it again", "publish the score: %v", err))
		return
	}
	s.lib.Put(c)
	httpapi.Reply(w, http.StatusOK, c)
}
