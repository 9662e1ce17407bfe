package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/platform/stack"
)

type watchCmd struct {
	Service watchServiceCmd `cmd:"" default:"withargs" help:"Call a service 50 times a second; a line a second says which instances answered."`
	Devices watchDevicesCmd `cmd:"" help:"Show which displays are connected, and what they play, as it happens."`
}

type watchServiceCmd struct {
	Service string `arg:"" help:"The service, for example account."`
	Method  string `placeholder:"SERVICE/METHOD" help:"What to call with an empty request. Default: a method of the service that changes nothing and that anyone may call."`
	Rate    int    `default:"50" help:"Calls a second, through all gateways in turn."`
}

// Run watches until Ctrl-C.
func (c *watchServiceCmd) Run(e *env) error {
	if c.Rate < 1 || c.Rate > 10000 {
		return fmt.Errorf("--rate=%d: want 1 to 10000 calls a second", c.Rate)
	}
	return e.withAPI(func(_ *stack.Stack, d *door, a *api) error {
		find, name := a.probe, c.Service
		if c.Method != "" {
			find, name = a.method, c.Method
		}
		method, err := find(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stderr, "calling %s %d times a second through the gateways; Ctrl-C ends it\n", methodPath(method)[1:], c.Rate)
		return watch(e.ctx, d, method, c.Rate, e.stdout)
	})
}

// servedBy is the response header with the instance that answered.
const servedBy = "x-served-by"

// callTimeout bounds one call of a watch: one that takes longer has failed.
const callTimeout = 5 * time.Second

// tally is what the calls of one interval came to.
type tally struct {
	served  map[string]int // answers by instance
	errors  map[string]int // failures by code
	slowest time.Duration
}

func newTally() *tally {
	return &tally{served: make(map[string]int), errors: make(map[string]int)}
}

// add counts one call.
func (t *tally) add(instance string, err error, took time.Duration) {
	t.slowest = max(t.slowest, took)
	if err != nil {
		t.errors[status.Code(err).String()]++
		return
	}
	if instance == "" {
		instance = "unnamed"
	}
	t.served[instance]++
}

// forgetAfter is how many lines an instance that does not answer any more keeps
// its column.
const forgetAfter = 10

// line writes the tally. known counts, for each instance seen so far, the lines
// since it last answered: it keeps its column for a while, so that one that is
// gone is seen to be.
func (t *tally) line(at time.Time, known map[string]int) string {
	for instance := range t.served {
		known[instance] = 0
	}
	instances := make([]string, 0, len(known))
	calls := 0
	for instance, silent := range known {
		if silent > forgetAfter {
			delete(known, instance)
			continue
		}
		known[instance]++
		instances = append(instances, instance)
		calls += t.served[instance]
	}
	sort.Strings(instances)
	failed := 0
	for _, n := range t.errors {
		failed += n
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s  %3d calls ", at.Format("15:04:05"), calls+failed)
	for _, instance := range instances {
		fmt.Fprintf(&text, "  %s %3d", shortInstance(instance), t.served[instance])
	}
	fmt.Fprintf(&text, "   errors %d", failed)
	codes := make([]string, 0, len(t.errors))
	for code, n := range t.errors {
		codes = append(codes, fmt.Sprintf("%s %d", code, n))
	}
	sort.Strings(codes)
	if len(codes) > 0 {
		fmt.Fprintf(&text, " (%s)", strings.Join(codes, ", "))
	}
	fmt.Fprintf(&text, "   slowest %.1f ms", float64(t.slowest.Microseconds())/1000)
	return text.String()
}

var uuid = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// shortInstance is the part of an instance id that tells instances apart: the
// first eight characters of the allocation in it, or the end of an id without.
func shortInstance(id string) string {
	if allocation := uuid.FindString(id); allocation != "" {
		return allocation[:8]
	}
	if len(id) > 12 {
		return id[len(id)-12:]
	}
	return id
}

// watch calls method rate times a second, whether or not answers come, and
// writes one line a second until ctx ends.
func watch(ctx context.Context, conn grpc.ClientConnInterface, method protoreflect.MethodDescriptor, rate int, w io.Writer) error {
	var (
		mu      sync.Mutex
		current = newTally()
		calls   sync.WaitGroup
		known   = make(map[string]int)
	)
	defer calls.Wait()
	request := dynamicpb.NewMessage(method.Input())
	call := func() {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		var header metadata.MD
		began := time.Now()
		err := conn.Invoke(ctx, methodPath(method), request, dynamicpb.NewMessage(method.Output()), grpc.Header(&header))
		took := time.Since(began)
		if ctx.Err() == context.Canceled {
			return // the watch ended, not the call
		}
		mu.Lock()
		defer mu.Unlock()
		current.add(strings.Join(header.Get(servedBy), ","), err, took)
	}
	began, sent := time.Now(), 0
	each := time.NewTicker(time.Second / time.Duration(rate))
	defer each.Stop()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-each.C:
			// A ticker drops what a busy machine misses; the rate is kept.
			for due := int(time.Since(began).Seconds() * float64(rate)); sent < due; sent++ {
				calls.Go(call)
			}
		case at := <-second.C:
			mu.Lock()
			line := current.line(at, known)
			current = newTally()
			mu.Unlock()
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
	}
}
