package e2e

import (
	"context"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// overloadVariable says how long too much is asked, for example 1m; without it
// it is overloadDefault.
const (
	overloadVariable = "MARQUEE_E2E_OVERLOAD"
	overloadDefault  = 10 * time.Second
)

// Twice as much is asked as can be done: what is let in is done as fast as ever,
// the rest is refused at once with when to try again, nothing is restarted, and
// afterwards all is as before.
func TestOverload(t *testing.T) {
	lasts := overloadDefault
	if text := os.Getenv(overloadVariable); text != "" {
		var err error
		lasts, err = time.ParseDuration(text)
		require.NoError(t, err, overloadVariable)
	}
	// Its capacity is known: so many calls at once, half a second each.
	t.Run("Calls", func(t *testing.T) {
		ctx := beginBeside(t, lasts+2*time.Minute)
		d := openDoors(t, ctx)
		const atOnce, delay, count = 50, 500 * time.Millisecond, 2
		echo := echov1.NewEchoServiceClient(d.GRPC)
		ops := []load.Op{
			{Name: "REST Echo", Call: func(ctx context.Context) (string, error) {
				return d.REST.Do(ctx, load.Request{Method: "POST", Path: "/v1/echo", Body: map[string]any{"text": "x", "delayMs": delay.Milliseconds()}}, nil)
			}},
			load.GRPC("gRPC Echo", func(ctx context.Context, opts ...grpc.CallOption) error {
				_, err := echo.Echo(ctx, &echov1.EchoRequest{Text: "x", DelayMs: int32(delay.Milliseconds())}, opts...)
				return err
			}),
		}
		capacity := count * atOnce * int(time.Second/delay)
		overload(t, ctx, d, asked{service: "echo", program: "echod", instances: count, capacity: capacity, lasts: lasts, ops: ops,
			slower: delay})
	})
	// Its capacity is the machine's: a password is made to be expensive to check.
	logIns := func(instances int, slower time.Duration) func(*testing.T) {
		return func(t *testing.T) {
			ctx := beginBeside(t, lasts+3*time.Minute)
			d := openDoors(t, ctx)
			scaleAccount(t, ctx, instances)
			t.Cleanup(func() { scaleAccount(t, context.WithoutCancel(ctx), 3) })
			client, accounts := accountv1.NewAccountServiceClient(d.GRPC), d.Accounts()
			next := make(chan string, 20)
			for i := range cap(next) {
				next <- accounts.SignUp(ctx, t, strconv.Itoa(i))
			}
			someone := func() string { name := <-next; next <- name; return name }
			ops := []load.Op{
				{Name: "REST LogIn", Call: func(ctx context.Context) (string, error) {
					return d.REST.Do(ctx, load.Request{Method: "POST", Path: "/v1/sessions", Body: map[string]string{"name": someone(), "password": scenario.Password}}, nil)
				}},
				load.GRPC("gRPC LogIn", func(ctx context.Context, opts ...grpc.CallOption) error {
					_, err := client.LogIn(ctx, &accountv1.LogInRequest{Name: someone(), Password: scenario.Password}, opts...)
					return err
				}),
			}
			capacity := measureCapacity(t, ctx, 2*instances, ops)
			overload(t, ctx, d, asked{service: "account", program: "accountd", instances: instances, capacity: capacity, lasts: lasts, ops: ops,
				least: 100, slower: slower})
		}
	}
	// Some wait until it is noticed that it is no burst.
	t.Run("LogIns", logIns(1, 500*time.Millisecond))
	// Three instances hash more at once than a machine with two cores has cores, and
	// everything on it takes longer.
	t.Run("LogInsOfThree", logIns(3, 700*time.Millisecond))
}

func scaleAccount(t *testing.T, ctx context.Context, instances int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := the.Jobs().Deploy(ctx, loadJob(t, ctx, "account", map[string]string{"account_count": strconv.Itoa(instances)}), nil)
	require.NoError(t, err)
	healthy(t, ctx, "account", instances, time.Minute)
}

// asked is what is asked of a service that has capacity calls a second.
type asked struct {
	service, program    string
	instances, capacity int
	lasts               time.Duration
	ops                 []load.Op
	// least is the least that is asked at once, where the capacity is not known
	// for certain.
	least int
	// slower is how much longer a call that is let in may take at the 99th
	// percentile than when three quarters are asked of what can be done.
	slower time.Duration
}

// refusedWithin is how long a refusal may take at the 99th percentile: a tenth of
// what callers wait who are not refused early but time out, and no figure for a
// machine with nothing else to do. On one where calls take longer than that
// without overload it is twice what they take.
const refusedWithin = time.Second

func overload(t *testing.T, ctx context.Context, d scenario.Doors, a asked) {
	alive := processes(t, a.program)
	usual := &timed{}
	// A quarter of what it can do, before and after.
	calm := load.Plan{Rate: max(4, a.capacity/4), Calls: max(4, a.capacity/4) * 4, Timeout: 10 * time.Second, Ops: usual.of(a.ops)}
	report := load.Start(ctx, calm).Wait()
	require.Empty(t, report.Failed, "without overload")
	// Three quarters: as much work for the machine, and no overload.
	full := &timed{}
	most := a.capacity * 3 / 4
	load.Start(ctx, load.Plan{Rate: most, Calls: most * 4, Timeout: 10 * time.Second, Ops: full.of(a.ops)}).Wait()

	// Somebody else's calls, and the registry's opinion, meanwhile.
	others := load.Start(ctx, load.Plan{Rate: 20, Timeout: 10 * time.Second, Ops: d.Accounts().KeyReads()})
	watched, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	lowest, looks := a.instances, 0
	watching.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for watched.Err() == nil {
			if ids, err := instances(watched, a.service); err == nil {
				lowest, looks = min(lowest, len(ids)), looks+1
			}
			<-tick.C
		}
	})
	busy := &timed{}
	rate := max(2*a.capacity, a.least)
	running := load.Start(ctx, load.Plan{
		Rate: rate, Calls: int(float64(rate) * a.lasts.Seconds()), Timeout: 10 * time.Second, MaxInFlight: 20 * rate, Ops: busy.of(a.ops),
	})
	report = running.Wait()
	stop()
	watching.Wait()
	otherReport := others.Stop()

	accepted, refused, normal, nearly := busy.quantiles(true), busy.quantiles(false), usual.quantiles(true), full.quantiles(true)
	t.Logf("%d calls a second for %s of %s, which can do %d: %d done, %.0f a second, p50 %s, p99 %s (%s and %s at %d a second, %s and %s at %d); %d refused, p50 %s, p99 %s",
		rate, a.lasts, a.service, a.capacity, accepted.n, float64(accepted.n)/report.Took.Seconds(), accepted.p50, accepted.p99,
		nearly.p50, nearly.p99, most, normal.p50, normal.p99, calm.Rate, refused.n, refused.p50, refused.p99)
	t.Logf("other calls meanwhile: %d, %d failed, p50 %s, p99 %s", otherReport.Calls, len(otherReport.Failed),
		otherReport.Quantile(.5).Round(time.Millisecond), otherReport.Quantile(.99).Round(time.Millisecond))
	for _, f := range report.Failed {
		require.NoError(t, tooMuch(f.Err), "%s at %s", f.Op, f.At)
	}
	require.NotZero(t, refused.n, "twice the capacity was done")
	require.Greater(t, accepted.n, int(float64(a.capacity)*a.lasts.Seconds()/2), "less was done than half of what it can do")
	require.Less(t, accepted.p50, nearly.p50+max(nearly.p50, a.slower/5), "calls that were let in became slow")
	require.Less(t, accepted.p99, nearly.p99+a.slower, "calls that were let in became slow")
	require.Less(t, refused.p99, max(refusedWithin, 2*normal.p99), "refusals came late")
	require.Empty(t, otherReport.Failed, "other calls")
	require.NotZero(t, looks, "how many instances are healthy")
	require.Equal(t, a.instances, lowest, "healthy instances at the least")
	require.Equal(t, alive, processes(t, a.program), "processes were started anew")

	after := &timed{}
	calm.Ops = after.of(a.ops)
	report = load.Start(ctx, calm).Wait()
	again := after.quantiles(true)
	t.Logf("afterwards p50 %s, p99 %s", again.p50, again.p99)
	require.Empty(t, report.Failed, "afterwards")
	// The 99th percentile of so few is the slowest one.
	require.Less(t, again.p99, normal.p99+time.Second, "afterwards calls are slow")
	require.Less(t, again.p50, normal.p50+max(normal.p50, a.slower/5), "afterwards calls are slow")
}

// tooMuch returns nil for an early refusal that says when to try again.
func tooMuch(err error) error {
	return toldWhen(err, http.StatusTooManyRequests, codes.ResourceExhausted)
}

// measureCapacity is how many calls a second are answered when so many callers wait
// for one before they make the next.
func measureCapacity(t *testing.T, ctx context.Context, callers int, ops []load.Op) int {
	t.Helper()
	const lasts, refusedPause = 4 * time.Second, 20 * time.Millisecond
	began, done := time.Now(), make([]int, callers)
	errs := make([]error, callers)
	var calling sync.WaitGroup
	for i := range callers {
		calling.Go(func() {
			for time.Since(began) < lasts && errs[i] == nil {
				_, err := ops[i%len(ops)].Call(ctx)
				switch {
				case err == nil:
					done[i]++
				case tooMuch(err) == nil: // so many may be too many
					time.Sleep(refusedPause)
				default:
					errs[i] = err
				}
			}
		})
	}
	calling.Wait()
	total := 0
	for i := range callers {
		require.NoError(t, errs[i])
		total += done[i]
	}
	return max(1, int(float64(total)/time.Since(began).Seconds()))
}

// timed notes how long calls take, apart for those that are done and refused.
type timed struct {
	mu            sync.Mutex
	done, refused []time.Duration
}

func (m *timed) of(ops []load.Op) []load.Op {
	measured := make([]load.Op, len(ops))
	for i, op := range ops {
		measured[i] = load.Op{Name: op.Name, Call: func(ctx context.Context) (string, error) {
			began := time.Now()
			by, err := op.Call(ctx)
			took := time.Since(began)
			m.mu.Lock()
			defer m.mu.Unlock()
			if err == nil {
				m.done = append(m.done, took)
			} else {
				m.refused = append(m.refused, took)
			}
			return by, err
		}}
	}
	return measured
}

type quantiles struct {
	n        int
	p50, p99 time.Duration
}

func (m *timed) quantiles(done bool) quantiles {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.refused
	if done {
		all = m.done
	}
	if len(all) == 0 {
		return quantiles{}
	}
	slices.Sort(all)
	at := func(q float64) time.Duration {
		return all[min(int(q*float64(len(all))), len(all)-1)].Round(time.Millisecond)
	}
	return quantiles{n: len(all), p50: at(.5), p99: at(.99)}
}
