package gateway_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// floodVariable makes the test binary a client with many connections: its
// descriptors are not those of the gateway.
const floodVariable = "MARQUEE_TEST_FLOOD"

func TestMain(m *testing.M) {
	if order := os.Getenv(floodVariable); order != "" {
		if err := runFlood(order); err != nil {
			fmt.Fprintln(os.Stderr, "flood:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// floodOrder is what a flooding client does: Count connections to Address, from
// as many addresses of this machine as Sources says, each with Say.
type floodOrder struct {
	Address        string
	Count, Sources int
	// Say is what is sent; a connection counts as open when it is.
	Say []byte
	// Answered says that the connection counts as open when a response has been
	// read, which ends with this.
	Answered string
}

// floodCount is what became of the connections.
type floodCount struct {
	Open, Closed int
	// Last is the first line (HTTP) or the frames' types (gRPC) that came, after
	// what made it open.
	Last map[string]int
}

type flooding struct {
	conn net.Conn

	mu     sync.Mutex
	last   string
	closed bool
}

// runFlood opens the connections, says so on standard output, and then answers
// each line on standard input with a count, until it ends.
func runFlood(order string) error {
	var o floodOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		return err
	}
	all := make([]*flooding, o.Count)
	var next atomic.Int64
	var opening sync.WaitGroup
	failed := make(chan error, 32)
	for range cap(failed) {
		opening.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= o.Count {
					return
				}
				f, err := o.open(n)
				if err != nil {
					failed <- fmt.Errorf("connection %d: %w", n, err)
					return
				}
				all[n] = f
			}
		})
	}
	opening.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	fmt.Println("open")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		c := floodCount{Last: map[string]int{}}
		for _, f := range all {
			f.mu.Lock()
			if f.closed {
				c.Closed++
			} else {
				c.Open++
			}
			if f.last != "" {
				c.Last[f.last]++
			}
			f.mu.Unlock()
		}
		if err := json.NewEncoder(os.Stdout).Encode(c); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (o floodOrder) open(n int) (*flooding, error) {
	source := net.IPv4(127, 1, 0, byte(1+n%o.Sources))
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: source}, Timeout: time.Minute}
	conn, err := dialer.Dial("tcp", o.Address)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(o.Say); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	for response := ""; !strings.HasSuffix(response, o.Answered); {
		var some [512]byte
		n, err := conn.Read(some[:])
		if err != nil {
			return nil, fmt.Errorf("after %q: %w", response, err)
		}
		response += string(some[:n])
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	f := &flooding{conn: conn}
	go f.read(strings.HasPrefix(string(o.Say), preface))
	return f, nil
}

func (f *flooding) read(http2 bool) {
	from := bufio.NewReaderSize(f.conn, 64)
	for {
		var what string
		var err error
		if http2 {
			what, err = frameType(from)
		} else if what, err = from.ReadString('\n'); what != "" {
			_, _ = io.Copy(io.Discard, from)
		}
		f.mu.Lock()
		f.last = strings.TrimSpace(f.last + " " + what)
		f.closed = err != nil
		f.mu.Unlock()
		if err != nil {
			f.conn.Close()
			return
		}
	}
}

// HTTP/2 by hand (RFC 9113, RFC 7541), as no client does what is needed here.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

var frameNames = map[byte]string{0x1: "HEADERS", 0x3: "RST_STREAM", 0x7: "GOAWAY"}

func frameType(from *bufio.Reader) (string, error) {
	var head [9]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return "", err
	}
	_, err := from.Discard(int(binary.BigEndian.Uint32(head[:4]) >> 8))
	return frameNames[head[3]], err
}

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	out = append(out, flags)
	return append(binary.BigEndian.AppendUint32(out, stream), payload...)
}

// hello is how a gRPC client begins.
func hello() []byte { return append([]byte(preface), frame(0x4, 0, 0, nil)...) }

// halfCall is hello and a call whose message never comes.
func halfCall(method string) []byte {
	var block []byte
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "flood"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		block = append(block, 0) // a literal that is not indexed
		for _, text := range h {
			block = append(append(block, byte(len(text))), text...)
		}
	}
	const endHeaders = 0x4
	return append(hello(), frame(0x1, endHeaders, 1, block)...)
}

// flood is a flooding client that runs.
type flood struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Reader
	end func()
}

func startFlood(t testing.TB, o floodOrder) *flood {
	t.Helper()
	order, err := json.Marshal(o)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	command := exec.CommandContext(t.Context(), self)
	command.Env = append(os.Environ(), floodVariable+"="+string(order))
	command.Stderr = os.Stderr
	f := &flood{t: t}
	f.in, err = command.StdinPipe()
	require.NoError(t, err)
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	f.out = bufio.NewReader(out)
	require.NoError(t, command.Start())
	f.end = sync.OnceFunc(func() {
		f.in.Close()
		if err := command.Wait(); err != nil {
			t.Errorf("the flooding client: %v", err)
		}
	})
	t.Cleanup(f.end)
	line, err := f.out.ReadString('\n')
	require.NoError(t, err, "the flooding client did not get its connections open")
	require.Equal(t, "open\n", line)
	return f
}

func (f *flood) count() (c floodCount) {
	f.t.Helper()
	_, err := fmt.Fprintln(f.in)
	require.NoError(f.t, err)
	line, err := f.out.ReadBytes('\n')
	require.NoError(f.t, err)
	require.NoError(f.t, json.Unmarshal(line, &c))
	return c
}

// until waits until the count is as it should be.
func (f *flood) until(within time.Duration, what string, holds func(floodCount) bool) {
	f.t.Helper()
	var last floodCount
	for began := time.Now(); time.Since(began) < within; {
		if last = f.count(); holds(last) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	f.t.Fatalf("%s: not within %s, but %+v", what, within, last)
}

// ordinary is a caller that minds its own business at both doors.
type ordinary struct {
	mu    sync.Mutex
	took  []time.Duration
	wrong error
	stop  func()
}

func startOrdinary(t testing.TB, b *bed) *ordinary {
	ctx, cancel := context.WithCancel(t.Context())
	o := &ordinary{}
	var running sync.WaitGroup
	o.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(o.stop)
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	for _, call := range []func() error{
		func() error {
			_, err := b.client.Echo(context.WithoutCancel(ctx), &echov1.EchoRequest{Text: "x"})
			return err
		},
		func() error {
			response, err := client.Post(b.url+"/v1/echo", "application/json", strings.NewReader(`{"text":"x"}`))
			if err != nil {
				return err
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err == nil && response.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s: %s", response.Status, body)
			}
			return err
		},
	} {
		running.Go(func() {
			ticker := time.NewTicker(10 * time.Millisecond)
			defer ticker.Stop()
			for {
				began := time.Now()
				err := call()
				o.mu.Lock()
				o.took = append(o.took, time.Since(began))
				o.wrong = errors.Join(o.wrong, err)
				o.mu.Unlock()
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
			}
		})
	}
	return o
}

// since returns the median and the 99th percentile of the calls since the last time.
func (o *ordinary) since(t testing.TB, phase string) (median, p99 time.Duration) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.NoError(t, o.wrong, "an ordinary call failed: %s", phase)
	require.NotEmpty(t, o.took, phase)
	slices.Sort(o.took)
	median, p99 = o.took[len(o.took)/2], o.took[len(o.took)*99/100]
	t.Logf("%s: %d ordinary calls, median %s, 99th percentile %s", phase, len(o.took), median.Round(time.Microsecond), p99.Round(time.Microsecond))
	o.took = nil
	return median, p99
}

// memory is what the process holds for its connections: heap and stacks.
func memory() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// few admits a number of calls at a time.
type few struct{ under, most atomic.Int64 }

func (f *few) Enter() error {
	if n := f.under.Add(1); n > f.most.Load() {
		f.under.Add(-1)
		return fault.New(fault.ResourceExhausted, "OVERLOADED", "full").WithRetryAfter(time.Second)
	}
	return nil
}

func (f *few) Leave() { f.under.Add(-1) }

// floodSize is how many connections of each kind there are.
// MARQUEE_TEST_CONNECTIONS=10000 is what the gateway is made for.
func floodSize(t testing.TB) int {
	size := 1000
	if asked := os.Getenv("MARQUEE_TEST_CONNECTIONS"); asked != "" {
		var err error
		size, err = strconv.Atoi(asked)
		require.NoError(t, err, "MARQUEE_TEST_CONNECTIONS")
	}
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if need := uint64(size) + 500; limit.Max < need {
		t.Skipf("this process may open %d files and the test takes %d", limit.Max, need)
	}
	return size
}

// Clients that hold connections open and say nothing, or begin calls and never
// finish them, cost memory and nobody's calls, are answered in time, and leave
// nothing behind.
func TestFlood(t *testing.T) {
	size := floodSize(t)
	// The gateway's: all have to be open before the first has waited for so long.
	timeout := 3*time.Second + time.Duration(size)*time.Millisecond
	// slow is what a machine that does other things as well adds.
	const slow = 20 * time.Second
	cfg := defaults()
	cfg.BodyTimeout, cfg.DefaultTimeout = timeout, timeout
	cfg.MaxConnections, cfg.MaxConnectionsPerAddress = size+200, size
	r := newRegistry()
	r.set("echo", startEcho(t).address)
	around := surroundings(t, r)
	admission := &few{}
	admission.most.Store(20)
	around.Admission = admission
	gw := startIn(t, r, cfg, around)
	o := startOrdinary(t, gw)
	soon(t, "ordinary calls", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.took) > 200
	})
	o.since(t, "before")
	goroutines, before, peak := runtime.NumGoroutine(), memory(), uint64(0)

	body := "POST /v1/echo HTTP/1.1\r\nHost: flood\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"text\":"
	for _, phase := range []struct {
		name       string
		http, grpc floodOrder
		// each is what a connection may hold, in bytes.
		each uint64
		// calls may be under way at a time.
		calls int
		// done says whether both have had their answer; nil: they stay open.
		done [2]func(floodCount) bool
	}{
		{
			name: "idle",
			http: floodOrder{Say: []byte("GET /v1/echo/x HTTP/1.1\r\nHost: flood\r\n\r\n"), Answered: "}"},
			grpc: floodOrder{Say: hello()},
			each: 48 << 10, calls: size,
		},
		{
			name: "half-open",
			http: floodOrder{Say: []byte(body)},
			grpc: floodOrder{Say: halfCall(echov1.EchoService_Echo_FullMethodName)},
			each: 64 << 10, calls: 20,
			done: [2]func(floodCount) bool{
				func(c floodCount) bool { return c.Last["HTTP/1.1 408 Request Timeout"] == size/2 && c.Closed == size/2 },
				// The answer is a trailer and the end of the call; the connection may be used on.
				func(c floodCount) bool { return c.Last["HEADERS RST_STREAM"] == size-size/2 },
			},
		},
	} {
		admission.most.Store(int64(phase.calls))
		began := time.Now()
		phase.http.Address, phase.http.Count, phase.http.Sources = gw.HTTPAddr().String(), size/2, 20
		phase.grpc.Address, phase.grpc.Count, phase.grpc.Sources = gw.GRPCAddr().String(), size-size/2, 20
		floods := []*flood{startFlood(t, phase.http), startFlood(t, phase.grpc)}
		opened := time.Since(began)
		soon(t, "all are accepted", func() bool { return gw.connections(t) >= size })
		now := memory()
		peak = max(peak, now)
		held := (now - before) / uint64(size)
		t.Logf("%s: %d connections opened in %s, %d bytes each", phase.name, size, opened.Round(time.Millisecond), held)
		require.Less(t, held, phase.each, phase.name)
		for i, done := range phase.done {
			if done != nil {
				floods[i].until(timeout+slow, phase.name+" are answered", done)
			}
		}
		median, _ := o.since(t, phase.name)
		require.Less(t, median, 250*time.Millisecond, "ordinary calls wait: %s", phase.name)
		for _, f := range floods {
			f.end()
		}
		soon(t, "all connections are gone", func() bool { return gw.connections(t) < 10 })
	}
	o.stop()
	soon(t, "all goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines+20 })
	require.Zero(t, admission.under.Load())
	var after uint64
	soon(t, "nearly all memory is free", func() bool {
		after = memory()
		return after < before+(peak-before)/5
	})
	t.Logf("memory: %d KiB before, %d KiB at the most, %d KiB after", before>>10, peak>>10, after>>10)
}
