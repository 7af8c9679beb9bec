package world

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"ctrloop/internal/catalogue"
)

// Placement is a slot of the shop's pages.
type Placement struct {
	Name       string  `yaml:"name" json:"name"`
	Share      float64 `yaml:"share" json:"share"`           // of visits; shares are normalised
	Multiplier float64 `yaml:"multiplier" json:"multiplier"` // of click probability; normalised to mean 1
}

// TrafficConfig describes the shoppers and the dirt in their logs. Shares are fractions of 1.
type TrafficConfig struct {
	// Seed draws the shoppers and everything they do.
	Seed uint64 `yaml:"seed" json:"seed"`
	// StartMS is the event time of the first visit, Unix milliseconds.
	StartMS int64 `yaml:"start_ms" json:"start_ms"`
	// RatePerSecond is the mean number of visits per second of event time over a day.
	RatePerSecond float64 `yaml:"rate_per_second" json:"rate_per_second"`
	// DayCurve is the swing of the rate over the day, 0..0.95; the peak is at 20:00 UTC.
	DayCurve float64 `yaml:"day_curve" json:"day_curve"`
	// Users is the size of the population, the unit of randomisation.
	Users int `yaml:"users" json:"users"`
	// Window is the join window: a click later than this after its impression is late.
	Window time.Duration `yaml:"window" json:"window"`
	// DelayMedian and DelaySigma shape the log-normal delay of clicks, whose tail is cut at the window.
	DelayMedian time.Duration `yaml:"delay_median" json:"delay_median"`
	DelaySigma  float64       `yaml:"delay_sigma" json:"delay_sigma"`
	// Placements are the slots.
	Placements []Placement `yaml:"placements" json:"placements"`
	// Positions is the number of positions in a slot; the k-th is seen less and clicked less.
	Positions int `yaml:"positions" json:"positions"`
	// Fatigue multiplies the click probability for each earlier view of the same product by the same user
	// on the same day (at most five count).
	Fatigue float64 `yaml:"fatigue" json:"fatigue"`
	// BotShare of visits are bots; their impressions are marked and they click with BotCTR.
	BotShare float64 `yaml:"bot_share" json:"bot_share"`
	BotCTR   float64 `yaml:"bot_ctr" json:"bot_ctr"`
	// DuplicateShare of impressions are sent twice, the second time up to MaxDisorder later.
	DuplicateShare float64 `yaml:"duplicate_share" json:"duplicate_share"`
	// DisorderShare of events are sent late, by up to MaxDisorder.
	DisorderShare float64       `yaml:"disorder_share" json:"disorder_share"`
	MaxDisorder   time.Duration `yaml:"max_disorder" json:"max_disorder"`
	// OrphanShare is the number of clicks on impressions that nobody sent, per real click.
	OrphanShare float64 `yaml:"orphan_share" json:"orphan_share"`
	// LateShare of clicks come after the window, up to half a window later.
	LateShare float64 `yaml:"late_share" json:"late_share"`
	// RepeatShare of clicks in time are followed by a second click on the same impression.
	RepeatShare float64 `yaml:"repeat_share" json:"repeat_share"`
	// BatchVisits and MaxTick bound a batch: this many visits or this much event time, whichever is less.
	BatchVisits int           `yaml:"batch_visits" json:"batch_visits"`
	MaxTick     time.Duration `yaml:"max_tick" json:"max_tick"`
	// SyncEvery is the number of batches between two fsyncs of the journal. A killed process loses nothing
	// in any case; a machine that loses power loses at most these.
	SyncEvery int `yaml:"sync_every" json:"-"`
	// Speed is event time over wall time; 0 runs as fast as it can.
	Speed float64 `yaml:"speed" json:"-"`
}

// DefaultTraffic is a shop with the dirt of ordinary logs.
func DefaultTraffic(seed uint64) TrafficConfig {
	return TrafficConfig{
		Seed: seed, StartMS: time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC).UnixMilli(), RatePerSecond: 100, DayCurve: 0.5, Users: 50_000,
		Window: 30 * time.Minute, DelayMedian: 25 * time.Second, DelaySigma: 1.4,
		Placements: []Placement{{"feed", 0.5, 1}, {"search", 0.3, 1.3}, {"banner", 0.2, 0.6}}, Positions: 4, Fatigue: 0.85,
		BotShare: 0.01, BotCTR: 0.08, DuplicateShare: 0.01, DisorderShare: 0.05, MaxDisorder: 30 * time.Second,
		OrphanShare: 0.005, LateShare: 0.005, RepeatShare: 0.01,
		BatchVisits: 1024, MaxTick: 10 * time.Second, SyncEvery: 64,
	}
}

// edge is the distance that click times keep from the end of the window: what exactly happens within a
// bucket (a second) of it is the joiner's documented freedom, not the world's to judge.
const edge = 5 * time.Second

// Validate returns every problem with its field.
func (c TrafficConfig) Validate() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("traffic."+format, args...))
		}
	}
	share := func(name string, v float64) { bad(v >= 0 && v <= 1, "%s: %v is not within 0..1", name, v) }
	bad(c.StartMS > 0, "start_ms: %d must be positive", c.StartMS)
	bad(c.RatePerSecond > 0, "rate_per_second: %v must be positive", c.RatePerSecond)
	bad(c.DayCurve >= 0 && c.DayCurve <= 0.95, "day_curve: %v is not within 0..0.95", c.DayCurve)
	bad(c.Users >= 100 && c.Users <= 50_000_000, "users: %d is not within 100..50,000,000", c.Users)
	bad(c.Window >= 4*edge && c.Window <= 24*time.Hour, "window: %v is not within %v..24h", c.Window, 4*edge)
	bad(c.DelayMedian > 0 && c.DelaySigma > 0, "delay: median %v and sigma %v must be positive", c.DelayMedian, c.DelaySigma)
	bad(len(c.Placements) > 0 && len(c.Placements) < 256, "placements: want 1..255, have %d", len(c.Placements))
	for i, p := range c.Placements {
		bad(p.Name != "" && p.Share > 0 && p.Multiplier > 0, "placements[%d]: want a name, share > 0 and multiplier > 0", i)
	}
	bad(c.Positions >= 1 && c.Positions <= 100, "positions: %d is not within 1..100", c.Positions)
	bad(c.Fatigue > 0 && c.Fatigue <= 1, "fatigue: %v is not within (0,1]", c.Fatigue)
	share("bot_share", c.BotShare)
	share("bot_ctr", c.BotCTR)
	share("duplicate_share", c.DuplicateShare)
	share("disorder_share", c.DisorderShare)
	share("orphan_share", c.OrphanShare)
	share("late_share", c.LateShare)
	share("repeat_share", c.RepeatShare)
	bad(c.MaxDisorder >= 10*time.Millisecond, "max_disorder: %v is below 10ms", c.MaxDisorder)
	bad(c.BatchVisits >= 1 && c.BatchVisits <= 1<<20, "batch_visits: %d is not within 1..1,048,576", c.BatchVisits)
	bad(c.MaxTick >= time.Millisecond, "max_tick: %v is below 1ms", c.MaxTick)
	bad(c.SyncEvery >= 1, "sync_every: %d must be positive", c.SyncEvery)
	bad(c.Speed >= 0, "speed: %v must not be negative", c.Speed)
	return errors.Join(errs...)
}

// alias draws from a discrete distribution in constant time (Walker 1977, Vose 1991).
type alias struct {
	prob  []float32
	other []uint32
}

func newAlias(weights []float64) alias {
	n := len(weights)
	var sum float64
	for _, w := range weights {
		sum += w
	}
	a := alias{make([]float32, n), make([]uint32, n)}
	p := make([]float64, n)
	var small, large []uint32
	for i, w := range weights {
		p[i] = w / sum * float64(n)
		if p[i] < 1 {
			small = append(small, uint32(i))
		} else {
			large = append(large, uint32(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		a.prob[s], a.other[s] = float32(p[s]), l
		if p[l] -= 1 - p[s]; p[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, rest := range [][]uint32{small, large} {
		for _, i := range rest {
			a.prob[i], a.other[i] = 1, i
		}
	}
	return a
}

func (a alias) draw(r *rand.Rand) int {
	u := r.Uint64()
	i := int((u >> 32) * uint64(len(a.prob)) >> 32)
	if float32(uint32(u)>>8)/(1<<24) < a.prob[i] {
		return i
	}
	return int(a.other[i])
}

// shoppers are the people and the shelves: everything about traffic that does not change while it runs.
type shoppers struct {
	cfg      TrafficConfig
	products []*catalogue.Product

	who       alias
	userMult  []float32 // click probability, mean 1 over visits
	favourite []uint8   // a department each
	bots      int       // users 0..bots-1

	popular alias   // over products
	inDept  []alias // over products of a department
	deptOf  [][]int

	placement alias
	placeMult []float64
	position  alias
	posMult   []float64
}

// Shoppers are few enough on each bot's side: one user in 500 is a bot.
const usersPerBot = 500

func newShoppers(cfg TrafficConfig, products []*catalogue.Product) *shoppers {
	r := rand.New(rand.NewPCG(cfg.Seed, 0x5109))
	s := &shoppers{cfg: cfg, products: products, bots: max(cfg.Users/usersPerBot, 1)}
	depts := map[string]int{}
	weights := make([]float64, len(products))
	rank := r.Perm(len(products))
	for i, p := range products {
		weights[i] = math.Pow(float64(rank[i]+8), -0.5) // a gentle Zipf: every product gets evidence
		d, ok := depts[p.Department]
		if !ok {
			d = len(depts)
			depts[p.Department] = d
			s.deptOf = append(s.deptOf, nil)
		}
		s.deptOf[d] = append(s.deptOf[d], i)
	}
	s.popular = newAlias(weights)
	for _, members := range s.deptOf {
		w := make([]float64, len(members))
		for k, i := range members {
			w[k] = weights[i]
		}
		s.inDept = append(s.inDept, newAlias(w))
	}
	s.drawUsers(r)
	var shares, mults []float64
	for _, p := range cfg.Placements {
		shares, mults = append(shares, p.Share), append(mults, p.Multiplier)
	}
	s.placement, s.placeMult = newAlias(shares), unitMean(mults, shares)
	shares, mults = nil, nil
	for k := range cfg.Positions {
		shares, mults = append(shares, math.Pow(0.7, float64(k))), append(mults, 1/(1+0.25*float64(k)))
	}
	s.position, s.posMult = newAlias(shares), unitMean(mults, shares)
	return s
}

func (s *shoppers) drawUsers(r *rand.Rand) {
	n := s.cfg.Users
	activity, mult := make([]float64, n), make([]float64, n)
	s.favourite = make([]uint8, n)
	for i := range n {
		activity[i] = math.Exp(r.NormFloat64())
		mult[i] = math.Exp(0.5 * r.NormFloat64())
		s.favourite[i] = uint8(r.IntN(min(len(s.deptOf), 256)))
		if i < s.bots {
			activity[i] = 0 // bots come by their own share
		}
	}
	s.who = newAlias(activity)
	s.userMult = make([]float32, n)
	for i, m := range unitMean(mult, activity) {
		s.userMult[i] = float32(m)
	}
}

// unitMean scales multipliers so that their mean under the weights is 1: the click-through rate over all
// traffic is then the creatives' own.
func unitMean(mult, weights []float64) []float64 {
	var s, w float64
	for i, m := range mult {
		s, w = s+m*weights[i], w+weights[i]
	}
	out := make([]float64, len(mult))
	for i, m := range mult {
		out[i] = m * w / s
	}
	return out
}

// userHash is the salted hash under which a user appears in events.
func (s *shoppers) userHash(user uint32) uint64 {
	return mix64(s.cfg.Seed*0x9e3779b97f4a7c15 ^ uint64(user))
}

// mix64 is the finaliser of SplitMix64 (Steele et al. 2014).
func mix64(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// rate is the visits per microsecond at an event time.
func (s *shoppers) rate(us int64) float64 {
	const day = 24 * 3600 * 1e6
	h := float64(us%day) / day
	return s.cfg.RatePerSecond / 1e6 * (1 + s.cfg.DayCurve*math.Cos(2*math.Pi*(h-20.0/24)))
}

// visitor draws who comes and what they are shown.
func (s *shoppers) visitor(r *rand.Rand) (user uint32, product, placement, position int) {
	if r.Float64() < s.cfg.BotShare {
		user = uint32(r.IntN(s.bots))
	} else {
		user = uint32(s.who.draw(r))
	}
	if d := s.favourite[user]; r.Uint64()&1 == 0 {
		product = s.deptOf[d][s.inDept[d].draw(r)]
	} else {
		product = s.popular.draw(r)
	}
	return user, product, s.placement.draw(r), s.position.draw(r)
}

// delay draws the time from impression to click: log-normal, from 300 ms to just inside the window.
func (s *shoppers) delay(r *rand.Rand) time.Duration {
	for {
		d := time.Duration(float64(s.cfg.DelayMedian) * math.Exp(s.cfg.DelaySigma*r.NormFloat64()))
		if d < s.cfg.Window-edge {
			return max(d, 300*time.Millisecond)
		}
	}
}

// disorder draws by how much an event is sent late: mostly not at all.
func (s *shoppers) disorder(r *rand.Rand) int64 {
	if r.Float64() >= s.cfg.DisorderShare {
		return 0
	}
	return s.someDisorder(r)
}

// someDisorder is a delay of sending from 1 ms to just below MaxDisorder.
func (s *shoppers) someDisorder(r *rand.Rand) int64 {
	return 1 + r.Int64N(s.cfg.MaxDisorder.Milliseconds()-2)
}
