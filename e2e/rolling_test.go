package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// Instances come and go by order, and callers do not notice.
func TestRolling(t *testing.T) {
	t.Run("Scaling", func(t *testing.T) {
		undisturbed(t, func(ctx context.Context, _ *load.Running) {
			for _, n := range []int{1, 5, 3} {
				began := time.Now()
				_, err := deploy(t, ctx, "account", map[string]string{"account_count": strconv.Itoa(n)}, nil)
				require.NoError(t, err)
				healthy(t, ctx, "account", n, 30*time.Second)
				t.Logf("%d instances after %.1f s", n, time.Since(began).Seconds())
			}
		})
	})
	// Both at once: the gateways are rolled while what is behind them is.
	t.Run("NewVersions", func(t *testing.T) {
		undisturbed(t, func(ctx context.Context, running *load.Running) {
			services := map[string]string{"account": "accountd", "gateway": "gatewayd"}
			versions, ended := map[string]string{}, make(chan error, len(services))
			began := time.Now()
			for service, program := range services {
				before, err := instances(ctx, service)
				require.NoError(t, err)
				require.NotEmpty(t, before)
				variable := service + "_binary"
				binary := anotherRelease(t, program, currentBinary(t, variable), nil)
				versions[service] = filepath.Base(filepath.Dir(binary))
				job := loadJob(t, ctx, service, map[string]string{variable: binary}, nil)
				go func() {
					done, err := the.Jobs().Deploy(ctx, job, nil)
					if err == nil {
						t.Logf("%s rolled in %.1f s", service, done.Took.Seconds())
					}
					ended <- err
				}()
			}
			for range services {
				require.NoError(t, <-ended)
			}
			for service, version := range versions {
				requireVersion(t, ctx, service, version)
			}
			t.Logf("both are new after %.1f s", time.Since(began).Seconds())
			requireEven(t, ctx, running, 3)
		})
	})
	// The service starts, and never becomes ready: its database does not exist.
	t.Run("BrokenVersion", func(t *testing.T) {
		undisturbed(t, func(ctx context.Context, running *load.Running) {
			good, err := the.Jobs().Service(ctx, "account")
			require.NoError(t, err)
			version := good.Instances[0].Release
			script := "#!/bin/sh\nexec " + currentBinary(t, "account_binary") + ` "$@" --database-service=no-such-db` + "\n"
			broken := anotherRelease(t, "accountd", "", []byte(script))
			began := time.Now()
			_, err = deploy(t, ctx, "account", map[string]string{"account_binary": broken}, func(job *nomadapi.Job) {
				for _, update := range []*nomadapi.UpdateStrategy{job.Update, job.TaskGroups[0].Update} {
					// Sooner than the job file has it, which waits a minute and a half.
					if update != nil {
						update.HealthyDeadline, update.ProgressDeadline = new(10*time.Second), new(15*time.Second)
					}
				}
			})
			var failed *jobs.FailedError
			require.ErrorAs(t, err, &failed, "a version that is never ready was rolled out")
			require.True(t, failed.Reverted, failed.Reason)
			_, err = the.Jobs().WaitReady(ctx, "account")
			require.NoError(t, err)
			requireVersion(t, ctx, "account", version)
			t.Logf("%s; the old version alone again after %.1f s", failed.Reason, time.Since(began).Seconds())
			requireEven(t, ctx, running, 3)
		})
	})
}

// undisturbed does something to the platform under load, of which no call may
// fail and no sign-up be lost or done twice.
func undisturbed(t *testing.T, do func(context.Context, *load.Running)) {
	ctx := begin(t, 4*time.Minute)
	d := followDoors(t, ctx)
	s := &signUps{client: accountv1.NewAccountServiceClient(d.grpc), prefix: fmt.Sprintf("e2e-%d", time.Now().UnixNano()), answers: map[string]string{}}
	running := load.Start(ctx, load.Plan{Rate: 200, Timeout: 10 * time.Second, Ops: d.ops(s)})
	scenario.AtLeast(ctx, t, running, 400)
	do(ctx, running)
	calls, _ := running.Snapshot()
	scenario.AtLeast(ctx, t, running, calls+200)
	report := running.Stop()
	t.Logf("%d calls, %d failed, p50 %s, p99 %s, longest %s", report.Calls, len(report.Failed),
		report.Quantile(.5).Round(time.Millisecond), report.Quantile(.99).Round(time.Millisecond), report.Longest().Round(time.Millisecond))
	if len(report.Failed) > 0 {
		t.Log(summary(report))
	}
	require.Empty(t, report.Failed, "no call may fail")
	s.check(t, ctx)
}

// followed are clients of all gateways that learn when those come and go, as a
// load balancer in front of them does.
type followed struct {
	rest atomic.Pointer[load.REST]
	grpc *grpc.ClientConn
}

func followDoors(t *testing.T, ctx context.Context) *followed {
	t.Helper()
	found, index, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
	require.NoError(t, err)
	require.Len(t, found, 2, "gateways")
	d := &followed{}
	var old []*load.REST
	use := func(gateways []stack.Gateway) (addresses []string) {
		var bases []string
		for _, g := range gateways {
			bases, addresses = append(bases, "http://"+g.HTTP), append(addresses, g.GRPC)
		}
		if last := d.rest.Swap(load.NewREST(bases...)); last != nil {
			old = append(old, last)
		}
		return addresses
	}
	var setGRPC func(...string)
	d.grpc, setGRPC, err = load.DialGRPCFollowing(use(found)...)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		for ctx.Err() == nil {
			now, next, err := stack.Gateways(ctx, the.Cluster().Consul(), index)
			if err != nil || len(now) == 0 {
				index = 0
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			if next != index {
				setGRPC(use(now)...)
			}
			index = next
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-followed
		d.grpc.Close()
		for _, rest := range append(old, d.rest.Load()) {
			rest.Close()
		}
	})
	return d
}

// ops are reads over both doors, and a sign-up in forty calls.
func (d *followed) ops(s *signUps) []load.Op {
	reads := []load.Op{
		{Name: "REST GetSigningKeys", Call: func(ctx context.Context) (string, error) {
			return d.rest.Load().Do(ctx, load.Request{Method: "GET", Path: "/v1/signing-keys", Idempotent: true}, nil)
		}},
		load.GRPC("gRPC GetSigningKeys", func(ctx context.Context, opts ...grpc.CallOption) error {
			_, err := s.client.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{}, opts...)
			return err
		}),
	}
	var ops []load.Op
	for i := range 80 {
		ops = append(ops, reads[i%2])
	}
	ops[20] = load.Op{Name: "REST SignUp", Call: func(ctx context.Context) (string, error) {
		id := fmt.Sprintf("%s-%d", s.prefix, s.next.Add(1))
		var answer struct {
			Account struct {
				AccountID string `json:"accountId"`
			} `json:"account"`
		}
		by, err := d.rest.Load().Do(ctx, load.Request{Method: "POST", Path: "/v1/accounts", Idempotent: true, Body: map[string]string{
			"requestId": id, "name": id, "password": password,
		}}, &answer)
		s.remember(id, answer.Account.AccountID, err)
		return by, err
	}}
	ops[61] = load.GRPC("gRPC SignUp", func(ctx context.Context, opts ...grpc.CallOption) error {
		id := fmt.Sprintf("%s-%d", s.prefix, s.next.Add(1))
		answer, err := s.client.SignUp(ctx, s.request(id), opts...)
		s.remember(id, answer.GetAccount().GetAccountId(), err)
		return err
	})
	return ops
}

// loadJob is a service's job with other values for its variables, and changed.
func loadJob(t *testing.T, ctx context.Context, service string, variables map[string]string, change func(*nomadapi.Job)) *jobs.Job {
	t.Helper()
	file, err := the.JobFile(service)
	require.NoError(t, err)
	for name, value := range variables {
		file.Variables[name] = value
	}
	job, err := the.Jobs().Load(ctx, file)
	require.NoError(t, err)
	if change != nil {
		change(job.Spec)
	}
	return job
}

func deploy(t *testing.T, ctx context.Context, service string, variables map[string]string, change func(*nomadapi.Job)) (jobs.Deployed, error) {
	t.Helper()
	return the.Jobs().Deploy(ctx, loadJob(t, ctx, service, variables, change), nil)
}

func currentBinary(t *testing.T, variable string) string {
	t.Helper()
	variables, err := the.Variables()
	require.NoError(t, err)
	require.NotEmpty(t, variables[variable])
	return variables[variable]
}

// anotherRelease stores another version of a program: text, or the same program
// with a few bytes more at its end, which its execution does not notice.
func anotherRelease(t *testing.T, program, from string, text []byte) string {
	t.Helper()
	if from != "" {
		same, err := os.ReadFile(from)
		require.NoError(t, err)
		text = fmt.Appendf(same, "\nanother version %d\n", time.Now().UnixNano())
	}
	sum := sha256.Sum256(text)
	dir := filepath.Join(release.Folder(the.root), hex.EncodeToString(sum[:])[:12])
	require.NoError(t, os.MkdirAll(dir, 0o755))
	path := filepath.Join(dir, program)
	require.NoError(t, os.WriteFile(path, text, 0o755)) //nolint:gosec // a program
	// Jobs may run it until the cluster is taken away; its folder goes when it
	// is as old as releases that nobody uses get.
	return path
}

// requireVersion waits until all instances are of one version.
func requireVersion(t *testing.T, ctx context.Context, service, version string) {
	t.Helper()
	scenario.Eventually(ctx, t, 30*time.Second, service+" is of version "+version, func() error {
		entries, _, err := the.Cluster().Consul().Health().Service(service, "", true, nil)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Service.Meta["version"] != version {
				return fmt.Errorf("%s is %s", e.Service.ID, e.Service.Meta["version"])
			}
		}
		if len(entries) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
}
