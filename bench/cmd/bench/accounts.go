package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/marquee-ads/marquee/platform/pgserver"
	"github.com/marquee-ads/marquee/platform/tools"
)

const (
	// people is how many accounts are logged in to and read: enough that no two
	// calls under way are often for the same one.
	people = 64
	// readers is how many of them have an access token, which lasts five minutes
	// and is made anew for each round.
	readers = 16

	password = "violet tugboat 94" // everybody's, and the database role's
	mostWait = 30 * time.Second    // for one answer
)

// counts are how many callers there are at a time.
func counts() []int { return []int{1, 16, 64, 256} }

// door is one of the two ways to the same accounts.
type door struct {
	name   string
	url    string
	client *http.Client
	// processes are what answers behind it, the one in front first.
	processes []*process

	made   *atomic.Int64 // accounts, at both doors
	next   atomic.Int64  // whose turn it is
	tokens []string
}

// wantsAccounts says whether -only leaves rows of accounts.
func (b *bench) wantsAccounts() bool { return len(b.accountRows(&door{})) > 0 }

// measureAccounts measures the same read, log-in and sign-up through one HTTP
// handler and through the platform, on the same tables of one Postgres.
func (b *bench) measureAccounts(ctx context.Context, s *series) error {
	one, platform, err := b.openDoors(ctx)
	if err != nil {
		return err
	}
	s.rows = b.accountRows(one, platform)
	doors := []*door{one, platform}
	// Half of the accounts are made at each door, and all are logged in to at both.
	for i := range people {
		if err := doors[i%2].signUp(ctx, person(i)); err != nil {
			return fmt.Errorf("make an account at the door of %s: %w", doors[i%2].name, err)
		}
	}
	s.before = func(ctx context.Context) error {
		for _, d := range doors {
			d.tokens = d.tokens[:0]
			for i := range readers {
				token, err := d.logIn(ctx, person(i))
				if err != nil {
					return fmt.Errorf("log in at the door of %s: %w", d.name, err)
				}
				d.tokens = append(d.tokens, token)
			}
		}
		return nil
	}
	return s.measure(ctx)
}

func person(i int) string { return fmt.Sprintf("person-%d", i) }

// accountRows are the rows that -only leaves: for each method and number of
// callers one through each door.
func (b *bench) accountRows(doors ...*door) []*row {
	var rows []*row
	for _, method := range []struct {
		name string
		call func(*door, context.Context) error
	}{{"read", (*door).readNext}, {"log-in", (*door).logInNext}, {"sign-up", (*door).signUpNext}} {
		for _, callers := range counts() {
			for _, d := range doors {
				rows = append(rows, &row{
					name: fmt.Sprintf("account %s, %d", method.name, callers), method: method.name, by: d.name,
					callers: callers, call: func(ctx context.Context) error { return method.call(d, ctx) }, processes: d.processes,
				})
			}
		}
	}
	return b.wanted(rows)
}

// openDoors starts the account service in the mesh behind the gateway, and beside
// that the handler on the socket of the same Postgres.
func (b *bench) openDoors(ctx context.Context) (one, platform *door, err error) {
	service, err := b.accountService(ctx)
	if err != nil {
		return nil, nil, err
	}
	database := url.URL{Scheme: "postgres", Path: "/account", RawQuery: url.Values{"host": {service.socket}, "user": {"account"}}.Encode()}
	monolith, err := b.startYardstick(ctx, "monolith", []string{"PGPASSWORD=" + password}, append(accountFlags(), "--database="+database.String())...)
	if err != nil {
		return nil, nil, err
	}

	made := &atomic.Int64{}
	one = b.newDoor("one handler", monolith.address, made, monolith, service.postgres)
	platform = b.newDoor("platform", b.gatewayHTTP, made, b.gateway, service.account, service.proxy, service.postgres)
	// The service first: it makes the tables.
	for _, d := range []*door{platform, one} {
		if err := until(ctx, d.name+" answers", d.signUpNext); err != nil {
			return nil, nil, err
		}
	}
	return one, platform, nil
}

// accounts is the account service with what it needs.
type accounts struct {
	account, proxy, postgres *process
	socket                   string // the folder of Postgres's
}

// accountFlags are the same for the service and for who is compared with it, or their
// bounds would be compared: accountd's defaults.
func accountFlags() []string {
	atOnce := max(1, runtime.NumCPU()/2)
	return []string{
		"--database-max-conns=10", "--password-memory=19456", "--password-passes=2",
		fmt.Sprint("--password-concurrency=", atOnce), fmt.Sprint("--password-queue=", 32*atOnce),
	}
}

// accountService starts a Postgres as production has it and the account service in
// the mesh, with the mesh proxy in front of Postgres, when nobody did before.
func (b *bench) accountService(ctx context.Context) (*accounts, error) {
	if b.accounts != nil {
		return b.accounts, nil
	}
	fmt.Fprintln(os.Stderr, "starting Postgres and the account service")
	postgres, socket, err := b.startPostgres(ctx, "account")
	if err != nil {
		return nil, err
	}
	key := filepath.Join(b.dir, "key")
	if err := os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))), 0o600); err != nil {
		return nil, fmt.Errorf("write the key encryption key: %w", err)
	}
	proxy, err := b.startService("mesh proxy", "meshproxyd", "--name=account-db", "--register=always", "--upstream=unix:"+filepath.Join(socket, ".s.PGSQL.5432"))
	if err != nil {
		return nil, err
	}
	account, err := b.startService("account", "accountd", append(accountFlags(), "--register=always", "--database-password-file="+b.passwordFile(), "--key-encryption-key-file="+key)...)
	if err != nil {
		return nil, err
	}
	b.accounts = &accounts{account: account, proxy: proxy, postgres: postgres, socket: socket}
	return b.accounts, nil
}

func (b *bench) passwordFile() string { return filepath.Join(b.dir, "password") }

func (*bench) postgresBinaries(ctx context.Context) (string, error) {
	return tools.Ensure(ctx, tools.Postgres, func(line string) { fmt.Fprintln(os.Stderr, " ", line) })
}

// startPostgres starts the one of a service, and returns it and the folder of its
// socket.
func (b *bench) startPostgres(ctx context.Context, service string) (*process, string, error) {
	binaries, err := b.postgresBinaries(ctx)
	if err != nil {
		return nil, "", err
	}
	if err := os.WriteFile(b.passwordFile(), []byte(password), 0o600); err != nil {
		return nil, "", fmt.Errorf("write the database's password: %w", err)
	}
	p := &process{name: "Postgres", log: filepath.Join(b.dir, service+"-postgres.log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, "", fmt.Errorf("make the log of Postgres: %w", err)
	}
	b.closers = append(b.closers, func() { log.Close() })
	server, err := pgserver.Start(ctx, pgserver.Config{
		BinDir: binaries, DataDir: filepath.Join(b.dir, service+"-postgres"), Role: service, Database: service,
		PasswordFile: b.passwordFile(), Output: log,
	})
	if err != nil {
		said, _ := os.ReadFile(p.log) // none is no other failure
		return nil, "", fmt.Errorf("start Postgres: %w\n%s", err, said)
	}
	b.closers = append(b.closers, func() {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stop Postgres:", err)
		}
	})
	p.pid = server.Pid()
	return p, server.SocketDir(), nil
}

func (b *bench) newDoor(name, address string, made *atomic.Int64, processes ...*process) *door {
	transport := &http.Transport{MaxIdleConnsPerHost: counts()[len(counts())-1]}
	b.closers = append(b.closers, transport.CloseIdleConnections)
	return &door{
		name: name, url: "http://" + address, processes: processes, made: made,
		client: &http.Client{Transport: transport, Timeout: mostWait},
	}
}

func (d *door) signUpNext(ctx context.Context) error {
	return d.signUp(ctx, fmt.Sprintf("somebody-%d", d.made.Add(1)))
}

func (d *door) logInNext(ctx context.Context) error {
	_, err := d.logIn(ctx, person(d.turn(people)))
	return err
}

func (d *door) readNext(ctx context.Context) error {
	i := d.turn(readers)
	var read struct{ Account struct{ Name string } }
	if err := d.call(ctx, http.MethodGet, "/v1/accounts/me", d.tokens[i], nil, &read); err != nil {
		return err
	}
	return named(read.Account.Name, person(i))
}

func (d *door) turn(of int) int { return int(d.next.Add(1) % int64(of)) }

func (d *door) signUp(ctx context.Context, name string) error {
	var created struct{ Account struct{ Name string } }
	if err := d.call(ctx, http.MethodPost, "/v1/accounts", "", map[string]string{"requestId": "bench-" + name, "name": name, "password": password}, &created); err != nil {
		return err
	}
	return named(created.Account.Name, name)
}

func (d *door) logIn(ctx context.Context, name string) (token string, err error) {
	var in struct {
		Account     struct{ Name string }
		AccessToken string
	}
	if err := d.call(ctx, http.MethodPost, "/v1/sessions", "", map[string]string{"name": name, "password": password}, &in); err != nil {
		return "", err
	}
	return in.AccessToken, named(in.Account.Name, name)
}

func named(got, want string) error {
	if got != want {
		return fmt.Errorf("the answer is about %q, not %q", got, want)
	}
	return nil
}

// call sends a request and reads its answer; 429 is a refusedError.
func (d *door) call(ctx context.Context, method, path, token string, request, answer any) error {
	var body io.Reader
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return fmt.Errorf("write a request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, d.url+path, body)
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read an answer: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if err := json.Unmarshal(text, answer); err != nil {
			return fmt.Errorf("read the answer %q: %w", text, err)
		}
		return nil
	case http.StatusTooManyRequests:
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || seconds < 1 || !strings.Contains(string(text), "OVERLOADED") {
			return fmt.Errorf("refused without a time to try again, or for another reason than the load: %s", text)
		}
		return refusedError{after: time.Duration(seconds) * time.Second}
	default:
		return fmt.Errorf("HTTP %d: %s", resp.StatusCode, text)
	}
}
