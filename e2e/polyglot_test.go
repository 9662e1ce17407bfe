package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/jobs"
)

// A service in another language, behind the mesh proxy, is one like the others:
// found, served over REST by gateways that were not told of it, balanced, and
// cut off where no edge is drawn. Not a line of Go is its own.
func TestPolyglot(t *testing.T) {
	ctx := beginBeside(t, 6*time.Minute)
	gateways := processes(t, "gatewayd")
	deployGreeting(t, ctx)
	d := openDoors(t, ctx)
	served := func() (string, error) { return greet(ctx, d.REST, "Ada Lovelace") }

	// No edge is drawn yet.
	refused(t, ctx, served)
	allow(t, ctx, true)
	scenario.Eventually(ctx, t, 30*time.Second, "it is served", func() error {
		_, err := served()
		return err
	})

	t.Run("Balanced", func(t *testing.T) {
		const calls = 200
		// Once both gateways have connected to both instances.
		scenario.Eventually(ctx, t, time.Minute, "both instances have the same share", func() error {
			by := map[string]int{}
			for range calls {
				id, err := served()
				require.NoError(t, err)
				by[id]++
			}
			t.Logf("%d calls: %v", calls, by)
			if len(by) != 2 {
				return fmt.Errorf("%d instances answer", len(by))
			}
			for id, share := range by {
				if share < calls*45/100 || share > calls*55/100 {
					return fmt.Errorf("%s has %d of %d calls", id, share, calls)
				}
			}
			return nil
		})
	})

	t.Run("ItsErrors", func(t *testing.T) {
		_, err := greet(ctx, d.REST, fmt.Sprintf("%0101d", 0))
		var problem *load.ProblemError
		require.ErrorAs(t, err, &problem)
		require.Equal(t, http.StatusBadRequest, problem.HTTPStatus, "%s", problem.Body)
		require.Contains(t, string(problem.Body), "use at most 100 characters")
	})

	t.Run("DeniedAndAllowed", func(t *testing.T) {
		allow(t, ctx, false)
		took := refused(t, ctx, served)
		t.Logf("cut off %.2f s after the edge was taken away", took.Seconds())
		require.False(t, letIn(t, ctx, "gateway"))

		allow(t, ctx, true)
		took = scenario.Eventually(ctx, t, 30*time.Second, "it is served again", func() error {
			_, err := served()
			return err
		})
		t.Logf("served again %.2f s after it was drawn", took.Seconds())
		require.True(t, letIn(t, ctx, "gateway"))
		require.False(t, letIn(t, ctx, "stranger"))
	})

	t.Run("Replaced", func(t *testing.T) {
		running := load.Start(ctx, load.Plan{Rate: 50, Timeout: 10 * time.Second, Ops: []load.Op{{Name: "REST Greet", Call: func(ctx context.Context) (string, error) {
			return greet(ctx, d.REST, "Ada")
		}}}})
		scenario.AtLeast(ctx, t, running, 50)
		require.NoError(t, the.Jobs().Restart(ctx, "greeting", func(jobs.Progress) {}))
		report := running.Stop()
		t.Log(report)
		require.Empty(t, report.Failed, "no call may fail while its instances are replaced")
	})

	require.Equal(t, gateways, processes(t, "gatewayd"), "the gateways are those from before")
}

// deployGreeting makes examples/python and runs it until the test ends.
func deployGreeting(t *testing.T, ctx context.Context) {
	t.Helper()
	folder := filepath.Join(the.root, "examples", "python")
	build := exec.CommandContext(ctx, "make", "-C", folder) //nolint:gosec // of this checkout
	build.WaitDelay = 5 * time.Second
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	variables, err := the.Variables()
	require.NoError(t, err)
	variables = maps.Clone(variables)
	variables["greeting_folder"] = filepath.Join(the.root, ".marquee", "examples", "python")
	job, err := the.Jobs().Load(ctx, jobs.File{Path: filepath.Join(folder, "greeting.nomad.hcl"), Variables: variables})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, the.Jobs().Stop(ctx, "greeting", true))
		require.NoError(t, the.Cluster().Apply(ctx, the.edges), "the edges as drawn")
	})
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := the.Jobs().Logs(ctx, "greeting", jobs.LogOptions{Lines: 60}, os.Stderr); err != nil {
				t.Logf("logs of greeting: %v", err)
			}
		}
	})
	_, err = the.Jobs().Deploy(ctx, job, func(p jobs.Progress) {
		t.Logf("%s: %d of %d healthy: %s", p.Job, p.Healthy, p.Desired, p.Message)
	})
	require.NoError(t, err)
}

// greet makes a REST call and returns who answered, by the answer's own word and
// by the header's.
func greet(ctx context.Context, rest *load.REST, name string) (string, error) {
	var answer struct {
		Greeting   string `json:"greeting"`
		InstanceID string `json:"instanceId"`
	}
	by, err := rest.Do(ctx, load.Request{Method: http.MethodGet, Path: "/v1/greetings/" + url.PathEscape(name), Idempotent: true}, &answer)
	switch {
	case err != nil:
		return by, err
	case answer.Greeting != "Hello "+name+", from Python":
		return by, fmt.Errorf("the greeting is %q", answer.Greeting)
	case answer.InstanceID != by:
		return by, fmt.Errorf("%q answered, and the header says %q", answer.InstanceID, by)
	}
	return by, nil
}

// allow draws the example's edges as well, or those of the platform alone.
func allow(t *testing.T, ctx context.Context, allowed bool) {
	t.Helper()
	drawn := the.edges
	if allowed {
		var text []byte
		for _, file := range []string{"nomad-jobs/edges.hcl", "e2e/jobs/edges.hcl", "examples/python/edges.hcl"} {
			more, err := os.ReadFile(filepath.Join(the.root, filepath.FromSlash(file)))
			require.NoError(t, err)
			text = append(append(text, more...), '\n')
		}
		var err error
		drawn, err = edges.Parse(text, "edges.hcl")
		require.NoError(t, err)
	}
	require.NoError(t, the.Cluster().Apply(ctx, drawn))
}

// refused waits until calls fail as those do that no instance answers, and says
// how long that took.
func refused(t *testing.T, ctx context.Context, call func() (string, error)) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, 15*time.Second, "calls are refused", func() error {
		by, err := call()
		var problem *load.ProblemError
		switch {
		case err == nil:
			return fmt.Errorf("%s answers", by)
		case !errors.As(err, &problem):
			return err
		case problem.HTTPStatus != http.StatusServiceUnavailable && problem.HTTPStatus != http.StatusNotFound:
			return err
		}
		return nil
	})
}

// letIn says whether the proxy lets a service of the mesh in: what is behind it
// says something at once, as every HTTP/2 server does.
func letIn(t *testing.T, ctx context.Context, caller string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := as(t, caller).DialContext(ctx, "greeting")
	require.NoError(t, err, "the connection itself, which anyone of the mesh can make")
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = io.ReadFull(conn, make([]byte, 1))
	if err == nil {
		return true
	}
	require.True(t, errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET), "neither let in nor refused: %v", err)
	return false
}
