package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/stack"
)

// made is the service that the test makes: its name, and what it keeps.
const (
	made     = "kiosk"
	keeps    = "stand"
	madePath = "/v1/stands"
	madeAPI  = "marquee.kiosk.v1.KioskService"
)

// One command makes a service; what it makes is generated, built, tested and
// deployed as it is, and called through gateways that were not told of it; one
// command takes it out again, and nothing of it is left.
func TestNewService(t *testing.T) {
	ctx := begin(t, 15*time.Minute)
	gateways := processes(t, "gatewayd")
	c := copyCheckout(t, ctx)
	c.run(t, ctx, "make", "generate")
	before := c.contents(t)

	c.run(t, ctx, "marquee", "new", "service", made, "--resource", keeps)
	t.Run("RefusedTwice", func(t *testing.T) {
		for _, name := range []string{made, "account", "echo"} {
			out, err := c.command(ctx, "marquee", "new", "service", name).CombinedOutput()
			require.Error(t, err)
			require.Contains(t, string(out), "nothing was changed")
			require.Contains(t, string(out), "proto/marquee/"+name+" exists")
		}
	})
	c.run(t, ctx, "make", "generate")
	c.run(t, ctx, "go", "vet", "./services/"+made+"/...")
	c.run(t, ctx, "go", "test", "-count=1", "./services/"+made+"/...")

	whole := t
	var forgotten <-chan error
	require.True(t, t.Run("Runs", func(t *testing.T) {
		t.Cleanup(restore(t))
		require.True(t, t.Run("Deployed", func(t *testing.T) { deployMade(t, ctx, c) }))
		t.Run("Called", func(t *testing.T) { callMade(t, ctx, c) })
		t.Run("Isolated", func(t *testing.T) {
			for caller, want := range map[string]bool{"gateway": true, "stranger": false, "echo": false} {
				let, err := reachGRPC(ctx, as(t, caller), made)
				require.NoError(t, err)
				require.Equal(t, want, let, "%s -> %s", caller, made)
				let, err = reachPostgres(ctx, as(t, caller), made+"-db")
				require.NoError(t, err)
				require.False(t, let, "%s -> %s-db", caller, made)
			}
		})
		require.True(t, t.Run("Removed", func(t *testing.T) {
			worked := filepath.Join(c.root, "services", made, "service.go")
			asMade, err := os.ReadFile(worked)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(worked, append(asMade, "\n// Work.\n"...), 0o600))
			out, err := c.command(ctx, "marquee", "new", "service", made, "--remove").CombinedOutput()
			require.Error(t, err, "somebody's work is removed")
			require.Contains(t, string(out), "services/"+made+"/service.go")
			require.NoError(t, os.WriteFile(worked, asMade, 0o600))

			c.run(t, ctx, "marquee", "new", "service", made, "--remove")
			c.run(t, ctx, "make", "generate")
			requireSame(t, before, c.contents(t))
			removeMade(t, ctx, c)
			forgotten = watchForgotten(whole, ctx, gateways)
		}))
	}))
	t.Parallel() // the scenarios that follow go on meanwhile: see beginBeside
	require.NoError(t, <-forgotten)
}

// deployMade runs the service on the cluster that all scenarios share.
func deployMade(t *testing.T, ctx context.Context, c *checkout) {
	t.Helper()
	t.Setenv("MARQUEE_ROOT", c.root) // what is built is the copy's
	cfg := c.config(t)
	cfg.Services = slices.DeleteFunc(cfg.Services, func(s stack.Service) bool { return s.Name != made && s.Name != made+"-db" })
	require.Len(t, cfg.Services, 2, "jobs of the service in nomad-jobs/services.hcl")
	platform, err := stack.Open(cfg)
	require.NoError(t, err)
	require.NoError(t, platform.Prepare(ctx))
	_, err = platform.DeployAll(ctx)
	require.NoError(t, err)
}

// restore makes the platform what it was: without the made service, with the
// edges as drawn, and with the programs of this checkout.
func restore(t *testing.T) func() {
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		for _, job := range []string{made, made + "-db"} {
			require.NoError(t, the.Jobs().Stop(ctx, job, true))
		}
		require.NoError(t, the.Prepare(ctx))
	}
}

// callMade uses the service through both doors, as an account.
func callMade(t *testing.T, ctx context.Context, c *checkout) {
	t.Helper()
	d := openDoors(t, ctx)
	token := d.Accounts().LogIn(ctx, t, "new").GetAccessToken()
	do := func(method, path, token string, body, answer any) error {
		_, err := d.REST.Do(ctx, load.Request{Method: method, Path: path, Token: token, Body: body, Idempotent: true}, answer)
		return err
	}
	type stand struct {
		StandID string `json:"standId"`
		Title   string `json:"title"`
	}
	var created, again, found struct {
		Stand stand `json:"stand"`
	}
	// The gateways learn of it, and it of the account's session.
	request := map[string]string{"requestId": "request-1", "title": "By the door"}
	scenario.Eventually(ctx, t, 30*time.Second, "it is served", func() error {
		return do("POST", madePath, token, request, &created)
	})
	require.Equal(t, "By the door", created.Stand.Title)
	require.NoError(t, do("POST", madePath, token, request, &again))
	require.Equal(t, created, again, "the repeat of a request")
	require.NoError(t, do("GET", madePath+"/"+created.Stand.StandID, token, nil, &found))
	require.Equal(t, created, found)

	for what, c := range map[string]struct {
		method, path, token string
		body                any
		status              int
	}{
		"no token":           {"GET", madePath, "", nil, http.StatusUnauthorized},
		"another body":       {"POST", madePath, token, map[string]string{"requestId": "request-1", "title": "Elsewhere"}, http.StatusConflict},
		"a title of spaces":  {"POST", madePath, token, map[string]string{"requestId": "request-2", "title": " "}, http.StatusBadRequest},
		"no such id":         {"GET", madePath + "/stand_00000000000000000000000000", token, nil, http.StatusNotFound},
		"no such page token": {"GET", madePath + "?pageToken=x", token, nil, http.StatusBadRequest},
	} {
		var problem *load.ProblemError
		require.ErrorAs(t, do(c.method, c.path, c.token, c.body, nil), &problem, what)
		require.Equal(t, c.status, problem.HTTPStatus, "%s: %s", what, problem.Body)
	}

	require.NoError(t, do("POST", madePath, token, map[string]string{"requestId": "request-2", "title": "By the lift"}, nil))
	var page struct {
		Stands        []stand `json:"stands"`
		NextPageToken string  `json:"nextPageToken"`
	}
	require.NoError(t, do("GET", madePath+"?pageSize=1", token, nil, &page))
	require.Len(t, page.Stands, 1)
	require.Equal(t, "By the lift", page.Stands[0].Title)

	// The other door, by a client that reads descriptors from the gateway.
	more, err := json.Marshal(map[string]any{"pageSize": 1, "pageToken": page.NextPageToken})
	require.NoError(t, err)
	answer := c.run(t, ctx, "marquee", "--cluster", "e2e", "invoke", madeAPI+"/ListStands", string(more), "--token", token)
	page.Stands, page.NextPageToken = nil, "?"
	require.NoError(t, json.Unmarshal(answer, &page), "%s", answer)
	require.Equal(t, []stand{created.Stand}, page.Stands)
	require.Empty(t, page.NextPageToken)
}

// removeMade brings the cluster in line with a checkout that has the service no
// more, as marquee jobs deploy --prune does, and looks for what is left.
func removeMade(t *testing.T, ctx context.Context, c *checkout) {
	t.Helper()
	platform, err := stack.Open(c.config(t))
	require.NoError(t, err)
	orphans, err := platform.StopOrphans(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{made, made + "-db"}, orphans)
	require.NoError(t, the.Cluster().Apply(ctx, the.edges))

	asked := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	services, _, err := the.Cluster().Consul().Catalog().Services(asked)
	require.NoError(t, err)
	for _, name := range []string{made, made + "-db"} {
		require.NotContains(t, services, name)
		for _, kind := range []string{consulapi.ServiceIntentions, consulapi.ServiceDefaults} {
			entries, _, err := the.Cluster().Consul().ConfigEntries().List(kind, asked)
			require.NoError(t, err)
			for _, entry := range entries {
				require.NotEqual(t, name, entry.GetName(), kind)
			}
		}
	}
	require.Empty(t, processes(t, made+"d"))
}

// watchForgotten watches until the gateways do not know the paths of the service
// that was removed, without ever having been started anew: they remember for a
// minute what a service served, to say "try again".
func watchForgotten(t *testing.T, ctx context.Context, gateways map[string]int) <-chan error {
	t.Helper()
	d := openDoors(t, ctx)
	began := time.Now()
	ended := make(chan error, 1)
	t.Cleanup(the.watched.Wait)
	the.watched.Go(func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			var known error
			for range gateways { // in turn
				_, err := d.REST.Do(ctx, load.Request{Method: http.MethodGet, Path: madePath}, nil)
				if problem := (*load.ProblemError)(nil); !errors.As(err, &problem) || problem.HTTPStatus != http.StatusNotFound {
					known = fmt.Errorf("a gateway says %w", err)
				}
			}
			took := time.Since(began).Seconds()
			switch {
			case !maps.Equal(gateways, processes(t, "gatewayd")):
				ended <- errors.New("the gateways are not those from before")
				return
			case known == nil:
				t.Logf("forgotten by the gateways %.0f s after it was removed", took)
				ended <- nil
				return
			case took > 90:
				ended <- fmt.Errorf("after %.0f s %w", took, known)
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	})
	return ended
}

// checkout is a copy of this one, as somebody has it who makes a service.
type checkout struct{ root string }

// copyCheckout copies what git has and what it would take. The copy builds into
// folders of its own, with the tools and the clusters of this one.
func copyCheckout(t *testing.T, ctx context.Context) *checkout {
	t.Helper()
	c := &checkout{root: filepath.Join(t.TempDir(), "marquee")}
	list := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = the.root
	out, err := list.Output()
	require.NoError(t, err, "listing the checkout's files")
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		from, to := filepath.Join(the.root, name), filepath.Join(c.root, name)
		info, err := os.Lstat(from)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and not committed yet
		}
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		text, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, text, info.Mode().Perm()))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(c.root, ".marquee"), 0o755))
	for _, shared := range []string{"tools", "clusters"} {
		require.NoError(t, os.Symlink(filepath.Join(the.root, ".marquee", shared), filepath.Join(c.root, ".marquee", shared)))
	}
	c.run(t, ctx, "make", "marquee")
	return c
}

// command is one in the copy; marquee is the copy's own.
func (c *checkout) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if name == "marquee" {
		name = filepath.Join(c.root, ".marquee", "bin", "marquee")
	}
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // of the copy
	cmd.Dir = c.root
	cmd.Env = append(os.Environ(), "MARQUEE_ROOT="+c.root)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a command to its end, and returns what it printed.
func (c *checkout) run(t *testing.T, ctx context.Context, name string, args ...string) []byte {
	t.Helper()
	began := time.Now()
	var stdout, all bytes.Buffer
	cmd := c.command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, &all), &all
	// Without what may be secret.
	line, _, _ := strings.Cut(strings.Join(append([]string{name}, args...), " "), " --token ")
	require.NoError(t, cmd.Run(), "%s:\n%s", line, all.String())
	t.Logf("%s: %.1f s", line, time.Since(began).Seconds())
	return stdout.Bytes()
}

// contents are the copy's files, apart from what commands make on a machine.
func (c *checkout) contents(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	require.NoError(t, filepath.WalkDir(c.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(c.root, path)
		if err != nil {
			return err
		}
		if name == ".marquee" || name == filepath.Join("proto", "third_party") {
			return fs.SkipDir
		}
		if entry.IsDir() {
			found[name] = "a folder"
			return nil
		}
		text, err := os.ReadFile(path)
		found[name] = string(text)
		return err
	}))
	return found
}

// requireSame names the files that differ, and not all that is in them.
func requireSame(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, text := range before {
		left, ok := after[name]
		require.True(t, ok, "%s is gone", name)
		require.True(t, left == text, "%s differs", name)
	}
	for name := range after {
		_, ok := before[name]
		require.True(t, ok, "%s is left", name)
	}
}

// config is the platform as the copy has it, on the cluster of all scenarios.
func (c *checkout) config(t *testing.T) stack.Config {
	t.Helper()
	services, err := stack.ReadServices(c.root)
	require.NoError(t, err)
	return stack.Config{
		Root:          c.root,
		Cluster:       cluster.Config{Dir: the.Cluster().Dir(), Name: "e2e"},
		VariableFiles: []string{filepath.Join(c.root, "nomad-jobs", "vars", "local.hcl")},
		EdgesFiles:    []string{filepath.Join(c.root, "nomad-jobs", "edges.hcl"), filepath.Join(c.root, "e2e", "jobs", "edges.hcl")},
		Services:      services,
		Progress:      func(line string) { t.Log(line) },
	}
}
