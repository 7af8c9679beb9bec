package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/access"
)

// pipes is a listener in memory, so that deadlines run in virtual time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *pipes) Addr() net.Addr { return address("127.0.0.1:80") }

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// addressed is a pipe's end with a remote address.
type addressed struct {
	net.Conn
	from address
}

func (a addressed) RemoteAddr() net.Addr { return a.from }

// dial connects from an address, such as 10.0.0.1.
func (p *pipes) dial(from string) net.Conn {
	client, server := net.Pipe()
	p.conns <- addressed{server, address(from + ":1")}
	return client
}

// stage is a server in a bubble of virtual time.
type stage struct {
	t      *testing.T
	pipes  *pipes
	server *Server
	bodies *Budget
	stop   func()
}

// onStage runs a test with a server over routes.
func onStage(t *testing.T, limits Limits, routes []Route, f func(*stage)) {
	synctest.Test(t, func(t *testing.T) {
		kit, err := New(limits, DefaultAuth(), zerolog.Nop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s := &stage{t: t, pipes: newPipes()}
		if s.server, err = kit.serve("test", s.pipes, routes); err != nil {
			t.Fatal(err)
		}
		s.bodies = s.server.http.Handler.(*entry).bodies
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.server.Run(ctx) }()
		s.stop = sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("run: %v", err)
			}
		})
		defer s.stop()
		f(s)
	})
}

// ask sends a request of an honest client on a connection of its own and reads the answer.
func (s *stage) ask(from, method, path, body string) (int, string) {
	s.t.Helper()
	c := s.pipes.dial(from)
	defer c.Close()
	go func() { // an answer may come before all has been sent
		_, _ = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
			method, path, len(body), body)
	}()
	return s.answer(c)
}

func (s *stage) send(c net.Conn, text string) {
	s.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Errorf("send: %v", err)
	}
}

// answer reads one answer; 0 where the connection ends without one.
func (s *stage) answer(c net.Conn) (int, string) {
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(raw)
}

// echo says how many bytes came.
func echo(w http.ResponseWriter, r *http.Request) {
	raw, err := Body(r, 64<<20)
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, http.StatusOK, len(raw))
}

var echoRoutes = []Route{{"POST", "/echo", access.EventsWrite, echo}}

const announce = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 33554432\r\n\r\n"

// S5: clients that announce a large body and send nothing cost nothing, shut out nobody, and are let go.
func TestSilentBodiesCostNothing(t *testing.T) {
	limits := DefaultLimits()
	limits.MaxBodiesBytes = 1 << 20
	onStage(t, limits, echoRoutes, func(s *stage) {
		var silent []net.Conn
		for range 64 {
			c := s.pipes.dial("10.0.0.1")
			s.send(c, announce)
			silent = append(silent, c)
		}
		synctest.Wait()
		if used := s.bodies.Used(); used > 64*firstBuffer {
			t.Errorf("%d bytes are held for clients that have sent none", used)
		}
		if code, body := s.ask("10.0.0.2", "POST", "/echo", "hello"); code != 200 || body != "5\n" {
			t.Errorf("another client gets %d %s", code, body)
		}
		began := time.Now()
		for _, c := range silent {
			if code, body := s.answer(c); code != 408 || !strings.Contains(body, `"code":"timeout"`) {
				t.Errorf("a silent client gets %d %s", code, body)
			}
		}
		if took := time.Since(began); took > limits.BodyPause {
			t.Errorf("silent clients were held for %v", took)
		}
		synctest.Wait()
		if used := s.bodies.Used(); used != 0 {
			t.Errorf("%d bytes are held afterwards", used)
		}
	})
}

// V18: bodies that stop half-way are let go after a pause, and what they held with them.
func TestUnfinishedBodiesAreLetGo(t *testing.T) {
	limits := DefaultLimits()
	limits.MaxBodiesBytes = 64 << 20
	onStage(t, limits, echoRoutes, func(s *stage) {
		half := strings.Repeat("x", 31<<20)
		c := s.pipes.dial("10.0.0.1")
		go func() { _, _ = io.WriteString(c, announce+half) }()
		synctest.Wait()
		if used := s.bodies.Used(); used < 31<<20 || used > 32<<20+1 {
			t.Errorf("%d bytes are held of 31 MiB that came", used)
		}
		began := time.Now()
		if code, _ := s.answer(c); code != 408 || time.Since(began) > limits.BodyPause {
			t.Errorf("%d after %v", code, time.Since(began))
		}
		synctest.Wait()
		if used := s.bodies.Used(); used != 0 {
			t.Errorf("%d bytes are held afterwards", used)
		}
	})
}

// A client that sends a byte now and then is let go too.
func TestTrickledBodiesAreLetGo(t *testing.T) {
	limits := DefaultLimits()
	onStage(t, limits, echoRoutes, func(s *stage) {
		c := s.pipes.dial("10.0.0.1")
		s.send(c, announce)
		began, gone := time.Now(), make(chan struct{})
		go func() {
			defer close(gone)
			for {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
				time.Sleep(limits.BodyPause - time.Second)
			}
		}()
		if code, _ := s.answer(c); code != 408 || time.Since(began) > limits.BodyTimeout {
			t.Errorf("%d after %v", code, time.Since(began))
		}
		c.Close()
		<-gone
	})
}

// Together, bodies hold no more than the listener may.
func TestBodiesTogetherAreBounded(t *testing.T) {
	limits := DefaultLimits()
	limits.MaxBodiesBytes = 2 << 20
	onStage(t, limits, echoRoutes, func(s *stage) {
		first := s.pipes.dial("10.0.0.1")
		s.send(first, "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1500001\r\n\r\n"+strings.Repeat("x", 1_500_000))
		synctest.Wait()
		if code, body := s.ask("10.0.0.2", "POST", "/echo", strings.Repeat("x", 1_000_000)); code != 429 ||
			!strings.Contains(body, "too_many_requests") {
			t.Errorf("beyond the bound: %d %s", code, body)
		}
		s.send(first, "x")
		if code, body := s.answer(first); code != 200 || body != "1500001\n" {
			t.Errorf("the first: %d %s", code, body)
		}
	})
}

// A handler may work for long after it has read its body: the body's deadline is over then.
func TestLongWorkIsNotCut(t *testing.T) {
	limits := DefaultLimits()
	work := func(w http.ResponseWriter, r *http.Request) {
		if _, err := Body(r, 100); err != nil {
			Fail(w, err)
			return
		}
		select {
		case <-time.After(10 * limits.BodyTimeout):
			Reply(w, 200, "done")
		case <-r.Context().Done():
			t.Error("the request was given up")
		}
	}
	onStage(t, limits, []Route{{"POST", "/work", access.Read, work}}, func(s *stage) {
		if code, body := s.ask("10.0.0.1", "POST", "/work", "hello"); code != 200 {
			t.Errorf("%d %s", code, body)
		}
	})
}

// V18: a client that does not read its answer does not hold the handler and the answer for ever; a slow one gets it all.
func TestClientsThatDoNotRead(t *testing.T) {
	limits := DefaultLimits()
	const size = 4 << 20
	var failed chan error // of the bubble
	send := func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, size))
		failed <- err
	}
	onStage(t, limits, []Route{{"GET", "/large", access.Read, send}}, func(s *stage) {
		failed = make(chan error, 1)
		c := s.pipes.dial("10.0.0.1")
		s.send(c, "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
		began := time.Now()
		if err := <-failed; err == nil || time.Since(began) > limits.WriteTimeout {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		c.Close()

		slow := s.pipes.dial("10.0.0.1")
		s.send(slow, "GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		got, buf := 0, make([]byte, piece)
		for {
			n, err := io.ReadFull(slow, buf)
			got += n
			if err != nil {
				break
			}
			time.Sleep(limits.WriteTimeout - time.Second)
		}
		if err := <-failed; err != nil || got < size {
			t.Errorf("a slow client got %d of %d bytes: %v", got, size, err)
		}
	})
}

// Thousands of connections that say nothing are bounded and shut out nobody.
func TestIdleConnectionsAreBounded(t *testing.T) {
	limits := DefaultLimits()
	limits.MaxConnections, limits.MaxConnectionsPerAddress = 100, 30
	limits.HeaderTimeout = time.Hour // the bound alone is tested
	onStage(t, limits, echoRoutes, func(s *stage) {
		open := func() (all, of int) {
			s.server.listener.mu.Lock()
			defer s.server.listener.mu.Unlock()
			return len(s.server.listener.open), s.server.listener.from[addressOf("10.0.0.1:1")]
		}
		var conns []net.Conn
		for range 3000 {
			conns = append(conns, s.pipes.dial("10.0.0.1"))
		}
		synctest.Wait()
		if all, of := open(); all != 30 || of != 30 {
			t.Errorf("%d connections, %d of one address that may have 30", all, of)
		}
		for i := range 3000 {
			conns = append(conns, s.pipes.dial(fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
		}
		synctest.Wait()
		if all, _ := open(); all != 100 {
			t.Errorf("%d connections of 100", all)
		}
		if code, body := s.ask("10.0.0.1", "POST", "/echo", "hello"); code != 200 {
			t.Errorf("a client that speaks gets %d %s", code, body)
		}
		for _, c := range conns {
			c.Close()
		}
	})
}

// Connections with a request in progress are not closed for others.
func TestBusyConnectionsStay(t *testing.T) {
	limits := DefaultLimits()
	limits.MaxConnections = 2
	var release chan struct{} // of the bubble
	wait := func(w http.ResponseWriter, _ *http.Request) { <-release; Reply(w, 200, "done") }
	onStage(t, limits, []Route{{"GET", "/wait", access.Read, wait}}, func(s *stage) {
		release = make(chan struct{})
		var busy []net.Conn
		for range 2 {
			c := s.pipes.dial("10.0.0.1")
			s.send(c, "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
			busy = append(busy, c)
		}
		synctest.Wait()
		third := s.pipes.dial("10.0.0.2")
		if _, err := third.Read(make([]byte, 1)); err == nil {
			t.Error("a third connection was taken")
		}
		close(release)
		for _, c := range busy {
			if code, _ := s.answer(c); code != 200 {
				t.Errorf("a busy connection got %d", code)
			}
			c.Close()
		}
	})
}

// A stop ends streams at once and gives up what does not end.
func TestStop(t *testing.T) {
	limits := DefaultLimits()
	stream := func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-Stopping(r.Context())
	}
	var hang chan struct{} // of the bubble
	routes := []Route{
		{"GET", "/stream", access.Read, stream},
		{"GET", "/hang", access.Read, func(http.ResponseWriter, *http.Request) { <-hang }},
	}
	onStage(t, limits, routes, func(s *stage) {
		c := s.pipes.dial("10.0.0.1")
		s.send(c, "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
		go func() { _, _ = io.Copy(io.Discard, c) }()
		synctest.Wait()
		began := time.Now()
		s.stop()
		if took := time.Since(began); took > time.Second {
			t.Errorf("a stream held up the stop for %v", took)
		}
	})
	onStage(t, limits, routes, func(s *stage) {
		hang = make(chan struct{})
		c := s.pipes.dial("10.0.0.1")
		s.send(c, "GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
		synctest.Wait()
		began := time.Now()
		s.stop()
		if took := time.Since(began); took > limits.StopGrace+time.Second {
			t.Errorf("a request that does not end held up the stop for %v", took)
		}
		close(hang)
		c.Close()
	})
}
