package bench

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Cost is what a stretch of a run took.
type Cost struct {
	WallSeconds float64 `json:"wall_seconds"`
	// CPUSeconds of this process, user and system (getrusage), or of the process that was measured.
	CPUSeconds float64 `json:"cpu_seconds"`
	// BrokerCPUSeconds of a broker in another process; 0 where it is in this one, or was not named.
	BrokerCPUSeconds float64 `json:"broker_cpu_seconds,omitempty"`
	Events           int64   `json:"events"`
}

func (c Cost) plus(o Cost) Cost {
	c.WallSeconds += o.WallSeconds
	c.CPUSeconds += o.CPUSeconds
	c.BrokerCPUSeconds += o.BrokerCPUSeconds
	c.Events += o.Events
	return c
}

// PerSecond of wall time.
func (c Cost) PerSecond() float64 { return ratio(float64(c.Events), c.WallSeconds) }

// PerCore is events a CPU second: what one core does in a second, whatever else the machine is busy with.
func (c Cost) PerCore() float64 { return ratio(float64(c.Events), c.CPUSeconds) }

// CPUPerMillion events, seconds.
func (c Cost) CPUPerMillion() float64 { return ratio(c.CPUSeconds*1e6, float64(c.Events)) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// stopwatch measures from its start on.
type stopwatch struct {
	wall   time.Time
	cpu    float64
	broker int
	was    float64 // broker's CPU at the start
}

func startWatch(brokerPID int) stopwatch {
	return stopwatch{time.Now(), selfCPU(), brokerPID, processCPU(brokerPID)}
}

func (s stopwatch) read(events int64) Cost {
	return Cost{
		WallSeconds: time.Since(s.wall).Seconds(), CPUSeconds: selfCPU() - s.cpu,
		BrokerCPUSeconds: processCPU(s.broker) - s.was, Events: events,
	}
}

// selfCPU is the processor time of this process, seconds.
func selfCPU() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// processCPU is the processor time of another process, seconds: 0 where the system does not tell.
func processCPU(pid int) float64 {
	if pid == 0 {
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name may hold spaces and brackets; utime and stime are fields 14 and 15, in ticks of 10 ms.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

// profile writes a CPU profile from now on until stop is called for the first time. Without a file it does nothing.
func profile(file string) (stop func(), err error) {
	if file == "" {
		return func() {}, nil
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("CPU profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("CPU profile: %w", err), f.Close())
	}
	return sync.OnceFunc(func() {
		pprof.StopCPUProfile()
		f.Close() // a profile that is cut says so when it is read
	}), nil
}

// peakRSS is the largest resident set of this process so far, bytes; 0 where the system does not tell.
func peakRSS() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return u.Maxrss
	}
	return u.Maxrss * 1024
}

// highWater is the largest resident set that this program had so far, bytes: getrusage would count that of the process
// that started it, too.
func highWater() int64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return peakRSS()
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return peakRSS()
}

// heap is what lives after a collection, bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // the first one may only have finished a cycle that was running
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Pauses of the garbage collector over a run.
type Pauses struct {
	Count int64 `json:"count"`
	// LongestMS is the upper edge of the histogram's bucket that holds the longest pause.
	LongestMS float64 `json:"longest_ms"`
	// FullMS is the wall time of a full collection at the end, with the windows full: the median of nine.
	FullMS float64 `json:"full_ms,omitempty"`
}

const pausesMetric = "/sched/pauses/total/gc:seconds"

type pauseReading = *metrics.Float64Histogram

func readPauses() pauseReading {
	s := []metrics.Sample{{Name: pausesMetric}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindFloat64Histogram {
		return &metrics.Float64Histogram{}
	}
	h := s[0].Value.Float64Histogram()
	return &metrics.Float64Histogram{Counts: append([]uint64(nil), h.Counts...), Buckets: append([]float64(nil), h.Buckets...)}
}

// pausesSince returns the pauses after an earlier reading.
func pausesSince(was pauseReading) (p Pauses) {
	now := readPauses()
	for i, n := range now.Counts {
		if i < len(was.Counts) {
			n -= was.Counts[i]
		}
		if n == 0 {
			continue
		}
		p.Count += int64(n)
		edge := now.Buckets[i+1]
		if math.IsInf(edge, 1) {
			edge = now.Buckets[i]
		}
		p.LongestMS = max(p.LongestMS, edge*1000)
	}
	return p
}
