package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
)

// Instances come and go by order, and callers do not notice.
func TestRolling(t *testing.T) {
	// The programs of the services that get new versions.
	rolled := map[string]string{"account": "accountd", "gateway": "gatewayd"}
	t.Run("Scaling", func(t *testing.T) {
		undisturbed(t, func(ctx context.Context, _ *load.Running) {
			for _, n := range []int{1, 5, 3} {
				began := time.Now()
				_, err := the.Jobs().Deploy(ctx, loadJob(t, ctx, "account", map[string]string{"account_count": strconv.Itoa(n)}), nil)
				require.NoError(t, err)
				healthy(t, ctx, "account", n, 30*time.Second)
				t.Logf("%d instances after %.1f s", n, time.Since(began).Seconds())
			}
		})
	})
	// Both at once: the gateways are rolled while what is behind them is.
	t.Run("NewVersions", func(t *testing.T) {
		undisturbed(t, func(ctx context.Context, running *load.Running) {
			versions := map[string]string{}
			var changed []*jobs.Job
			for service, program := range rolled {
				variable := service + "_binary"
				binary := anotherRelease(t, program, currentBinary(t, variable), nil)
				versions[service] = filepath.Base(filepath.Dir(binary))
				changed = append(changed, loadJob(t, ctx, service, map[string]string{variable: binary}))
			}
			began := time.Now()
			for service, err := range deployAtOnce(t, ctx, changed) {
				require.NoError(t, err)
				requireCanary(t, ctx, service, true)
				requireVersion(t, ctx, service, versions[service])
			}
			t.Logf("both are new after %.1f s", time.Since(began).Seconds())
			requireEven(t, ctx, running, 3)
		})
	})
	// They start, and never become ready: what they need does not exist. Of
	// neither more than a canary is ever started.
	t.Run("BrokenVersions", func(t *testing.T) {
		undisturbed(t, func(ctx context.Context, running *load.Running) {
			versions := map[string]string{}
			var changed []*jobs.Job
			for service, missing := range map[string]string{"account": "--database-service=no-such-db", "gateway": "--consul-addr=127.0.0.1:1"} {
				good, err := the.Jobs().Service(ctx, service)
				require.NoError(t, err)
				versions[service] = good.Instances[0].Release
				variable := service + "_binary"
				script := "#!/bin/sh\nexec " + currentBinary(t, variable) + ` "$@" ` + missing + "\n"
				// The job file's own deadlines are for machines that are slower.
				changed = append(changed, loadJob(t, ctx, service, map[string]string{
					variable:           anotherRelease(t, rolled[service], "", []byte(script)),
					"healthy_deadline": "10s", "progress_deadline": "15s",
				}))
			}
			began := time.Now()
			for service, err := range deployAtOnce(t, ctx, changed) {
				var failed *jobs.FailedError
				require.ErrorAs(t, err, &failed, "a version of %s that is never ready was rolled out", service)
				require.True(t, failed.Reverted, failed.Reason)
				requireCanary(t, ctx, service, false)
				_, err = the.Jobs().WaitReady(ctx, service)
				require.NoError(t, err)
				requireVersion(t, ctx, service, versions[service])
				t.Logf("%s: %s; the old version alone again after %.1f s", service, failed.Reason, time.Since(began).Seconds())
			}
			requireEven(t, ctx, running, 3)
		})
	})
}

// undisturbed does something to the platform under load, of which no call may
// fail and no sign-up be lost or done twice.
func undisturbed(t *testing.T, do func(context.Context, *load.Running)) {
	ctx := begin(t, 4*time.Minute)
	accounts := followDoors(t, ctx).Accounts()
	running := load.Start(ctx, accounts.Mixed(ctx, t))
	scenario.AtLeast(ctx, t, running, 200)
	do(ctx, running)
	scenario.More(ctx, t, running, 200)
	requireUndisturbed(t, ctx, running, accounts)
}

// followDoors makes clients of all gateways that learn when those come and go, as
// a load balancer in front of them does.
func followDoors(t *testing.T, ctx context.Context) scenario.Doors {
	t.Helper()
	found, index := bothGateways(t, ctx)
	bases, addresses := scenario.Addresses(found)
	rest := load.NewREST(bases...)
	conn, setGRPC, err := load.DialGRPCFollowing(addresses...)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() {
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
				bases, addresses := scenario.Addresses(now)
				rest.Set(bases...)
				setGRPC(addresses...)
			}
			index = next
		}
	})
	t.Cleanup(func() {
		cancel()
		following.Wait()
		conn.Close()
		rest.Close()
	})
	return scenario.Doors{REST: rest, GRPC: conn}
}

// loadJob is a service's job with other values for its variables.
func loadJob(t *testing.T, ctx context.Context, service string, variables map[string]string) *jobs.Job {
	t.Helper()
	file, err := the.JobFile(service)
	require.NoError(t, err)
	maps.Copy(file.Variables, variables)
	job, err := the.Jobs().Load(ctx, file)
	require.NoError(t, err)
	return job
}

// deployAtOnce deploys jobs beside each other, and returns what became of each.
func deployAtOnce(t *testing.T, ctx context.Context, changed []*jobs.Job) map[string]error {
	t.Helper()
	outcomes := make([]error, len(changed))
	var deploying sync.WaitGroup
	for i, job := range changed {
		deploying.Go(func() {
			began := time.Now()
			_, outcomes[i] = the.Jobs().Deploy(ctx, job, nil)
			t.Logf("%s: %.1f s", job.ID(), time.Since(began).Seconds())
		})
	}
	deploying.Wait()
	byJob := map[string]error{}
	for i, job := range changed {
		byJob[job.ID()] = outcomes[i]
	}
	return byJob
}

// requireCanary requires of the last deployment of a service that had one that
// it began with a single canary, and was promoted by itself or never.
func requireCanary(t *testing.T, ctx context.Context, service string, promoted bool) {
	t.Helper()
	deployments, _, err := the.Cluster().Nomad().Jobs().Deployments(service, false, (&nomadapi.QueryOptions{}).WithContext(ctx))
	require.NoError(t, err)
	var last *nomadapi.Deployment
	for _, d := range deployments {
		if d.TaskGroups[service].DesiredCanaries > 0 && (last == nil || d.CreateIndex > last.CreateIndex) {
			last = d
		}
	}
	require.NotNil(t, last, "no version of %s came as a canary", service)
	group := last.TaskGroups[service]
	require.Equal(t, promoted, group.Promoted, "%s: %s", service, last.StatusDescription)
	if promoted {
		require.Equal(t, nomadapi.DeploymentStatusSuccessful, last.Status)
		return
	}
	require.Equal(t, nomadapi.DeploymentStatusFailed, last.Status)
	require.Len(t, group.PlacedCanaries, 1, "canaries of %s", service)
	require.Zero(t, group.HealthyAllocs, "healthy instances of the broken %s", service)
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
