package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

var errNotYet = errors.New("not yet")

const password = "a pass phrase of e2e"

// signUps makes accounts and remembers what each request_id was answered.
type signUps struct {
	rest   *load.REST
	client accountv1.AccountServiceClient
	prefix string
	next   atomic.Int64

	mu      sync.Mutex
	answers map[string]string // account id by request_id
}

func newSignUps(d doors) *signUps {
	return &signUps{
		rest: d.rest, client: accountv1.NewAccountServiceClient(d.grpc),
		prefix: fmt.Sprintf("e2e-%d", time.Now().UnixNano()), answers: map[string]string{},
	}
}

func (s *signUps) request(id string) *accountv1.SignUpRequest {
	return &accountv1.SignUpRequest{RequestId: id, Name: id, Password: password}
}

// ops sign up over each door.
func (s *signUps) ops() []load.Op {
	return []load.Op{
		{Name: "REST SignUp", Call: func(ctx context.Context) (string, error) {
			id := fmt.Sprintf("%s-%d", s.prefix, s.next.Add(1))
			var answer struct {
				Account struct {
					AccountID string `json:"accountId"`
				} `json:"account"`
			}
			by, err := s.rest.Do(ctx, load.Request{Method: "POST", Path: "/v1/accounts", Idempotent: true, Body: map[string]string{
				"requestId": id, "name": id, "password": password,
			}}, &answer)
			s.remember(id, answer.Account.AccountID, err)
			return by, err
		}},
		load.GRPC("gRPC SignUp", func(ctx context.Context, opts ...grpc.CallOption) error {
			id := fmt.Sprintf("%s-%d", s.prefix, s.next.Add(1))
			answer, err := s.client.SignUp(ctx, s.request(id), opts...)
			s.remember(id, answer.GetAccount().GetAccountId(), err)
			return err
		}),
	}
}

func (s *signUps) remember(id, account string, err error) {
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[id] = account
}

// check repeats every sign-up that was answered: the answer must be the first
// one, and no two may share an account. A sign-up that was done twice would have
// found its own name taken.
func (s *signUps) check(t *testing.T, ctx context.Context) {
	t.Helper()
	require.NotEmpty(t, s.answers)
	owners := map[string]string{}
	for id, account := range s.answers {
		require.NotEmpty(t, account, "answer to %s", id)
		require.Empty(t, owners[account], "%s and another sign-up share an account", id)
		owners[account] = id
		again, err := s.client.SignUp(ctx, s.request(id), grpc.WaitForReady(true))
		require.NoError(t, err, "repeat of %s", id)
		require.Equal(t, account, again.GetAccount().GetAccountId(), "repeat of %s", id)
	}
	t.Logf("%d sign-ups, each done once", len(s.answers))
}

// mixedLoad is at least 200 calls a second, REST and gRPC, through both
// gateways: mostly reads, five sign-ups a second.
func mixedLoad(t *testing.T, ctx context.Context, d doors, s *signUps) load.Plan {
	t.Helper()
	client := accountv1.NewAccountServiceClient(d.grpc)
	id := s.prefix + "-reader"
	_, err := client.SignUp(ctx, s.request(id))
	require.NoError(t, err)
	session, err := client.LogIn(ctx, &accountv1.LogInRequest{Name: id, Password: password})
	require.NoError(t, err)
	token := session.GetAccessToken()

	reads := append(d.keyReads(),
		load.Op{Name: "REST GetAccount", Call: func(ctx context.Context) (string, error) {
			return d.rest.Do(ctx, load.Request{Method: "GET", Path: "/v1/accounts/me", Token: token, Idempotent: true}, nil)
		}},
		load.GRPC("gRPC GetAccount", func(ctx context.Context, opts ...grpc.CallOption) error {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
			_, err := client.GetAccount(ctx, &accountv1.GetAccountRequest{AccountId: "me"}, opts...)
			return err
		}),
	)
	var ops []load.Op
	for i := range 80 {
		ops = append(ops, reads[i%len(reads)])
	}
	writes := s.ops()
	ops[20], ops[60] = writes[0], writes[1]
	return load.Plan{Rate: 200, Timeout: 10 * time.Second, Ops: ops}
}

// requireEven takes the next 1,500 calls of a load that goes on: they must be
// spread evenly over n instances, within five per cent.
func requireEven(t *testing.T, ctx context.Context, r *load.Running, n int) {
	t.Helper()
	const calls = 1500
	began, before := r.Snapshot()
	scenario.AtLeast(ctx, t, r, began+calls)
	ended, after := r.Snapshot()
	spread := map[string]int{}
	for id := range after {
		if share := after[id] - before[id]; share > 0 {
			spread[id] = share
		}
	}
	t.Logf("%d calls spread over %d instances: %v", ended-began, n, spread)
	require.Len(t, spread, n)
	for id, share := range spread {
		require.InEpsilon(t, float64(ended-began)/float64(n), share, 0.05, "calls answered by %s", id)
	}
}

// Instances die as in a crash, and callers do not notice.
func TestFailover(t *testing.T) {
	for _, c := range []struct {
		name, service, program string
		kill, of               int
	}{
		{"OneAccount", "account", "accountd", 1, 3},
		{"TwoOfThreeAccounts", "account", "accountd", 2, 3},
		{"OneGateway", "gateway", "gatewayd", 1, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := begin(t, 3*time.Minute)
			d := openDoors(t, ctx)
			s := newSignUps(d)
			running := load.Start(ctx, mixedLoad(t, ctx, d, s))
			scenario.AtLeast(ctx, t, running, 600)
			began := time.Now()
			dead := kill(t, c.program, c.kill)
			excluded, restored := recovery(t, ctx, c.service, c.program, c.of, dead)
			// Until the callers' connections stand again.
			scenario.Eventually(ctx, t, 20*time.Second, "all instances serve", func() error {
				_, before := running.Snapshot()
				calls, _ := running.Snapshot()
				scenario.AtLeast(ctx, t, running, calls+50)
				_, after := running.Snapshot()
				for id := range after {
					if after[id] == before[id] {
						return fmt.Errorf("%s has served none of 50 calls", id)
					}
				}
				return nil
			})
			serving := time.Since(began)
			requireEven(t, ctx, running, 3)
			report := running.Stop()
			t.Logf("%s: killed %d of %d %s; excluded by Consul %s; all healthy again after %.1f s, all serving after %.1f s; longest call %s",
				c.name, c.kill, c.of, c.service, excluded, restored.Seconds(), serving.Seconds(), report.Longest().Round(time.Millisecond))
			t.Log(report)
			require.Empty(t, report.Failed, "no call may fail")
			s.check(t, ctx)
		})
	}
}

// recovery watches a service of which some processes were just killed until as
// many as before run and are healthy. It tells when Consul excluded the dead: it
// may not get to, because Nomad can be quicker to restart a process than Consul,
// which checks once a second, is to miss it. Callers do not wait for either:
// they leave an instance when its connection breaks.
func recovery(t *testing.T, ctx context.Context, service, program string, of int, dead map[string]int) (excluded string, restored time.Duration) {
	t.Helper()
	excluded = "never, as Nomad was quicker"
	began := time.Now()
	restored = scenario.Eventually(ctx, t, time.Minute, fmt.Sprintf("%d processes of %s run and are healthy", of, service), func() error {
		ids, err := instances(ctx, service)
		if err != nil {
			return err
		}
		if len(ids) < of {
			if strings.HasPrefix(excluded, "never") {
				excluded = fmt.Sprintf("after %.1f s", time.Since(began).Seconds())
			}
			return fmt.Errorf("%d are healthy", len(ids))
		}
		alive := processes(t, program)
		for alloc, pid := range dead {
			if alive[alloc] == pid {
				return fmt.Errorf("the killed process %d is still there", pid)
			}
		}
		if len(alive) != of {
			return fmt.Errorf("%d run", len(alive))
		}
		return nil
	})
	return excluded, restored
}

// served is how many calls an instance has answered.
func served(r *load.Running, id string) int {
	_, byInstance := r.Snapshot()
	return byInstance[id]
}

func without(all, gone []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(id string) bool { return slices.Contains(gone, id) })
}
