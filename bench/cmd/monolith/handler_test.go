package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/fault/problem"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/release"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	"github.com/marquee-ads/marquee/services/account"
)

// door is one of the two that are compared.
type door interface {
	signUp(t *testing.T, body string) answer
	logIn(t *testing.T, body string) answer
	read(t *testing.T, id, token string) answer
}

// answer is what comes back over HTTP.
type answer struct {
	status int
	body   map[string]any
}

// ours is the yardstick.
type ours struct{ url string }

func (d ours) signUp(t *testing.T, body string) answer {
	return d.send(t, http.MethodPost, "/v1/accounts", body, "")
}

func (d ours) logIn(t *testing.T, body string) answer {
	return d.send(t, http.MethodPost, "/v1/sessions", body, "")
}

func (d ours) read(t *testing.T, id, token string) answer {
	return d.send(t, http.MethodGet, "/v1/accounts/"+id, "", token)
}

func (d ours) send(t *testing.T, method, path, body, token string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, d.url+path, strings.NewReader(body))
	require.NoError(t, err)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	a := answer{status: response.StatusCode}
	require.NoError(t, json.NewDecoder(response.Body).Decode(&a.body))
	return a
}

// theirs is the service; its answers are written as the gateway writes them.
type theirs struct {
	client accountv1.AccountServiceClient
}

func (d theirs) signUp(t *testing.T, body string) answer {
	var request accountv1.SignUpRequest
	require.NoError(t, protojson.Unmarshal([]byte(body), &request))
	return written(t, "", func(ctx context.Context) (proto.Message, error) { return d.client.SignUp(ctx, &request) })
}

func (d theirs) logIn(t *testing.T, body string) answer {
	var request accountv1.LogInRequest
	require.NoError(t, protojson.Unmarshal([]byte(body), &request))
	return written(t, "", func(ctx context.Context) (proto.Message, error) { return d.client.LogIn(ctx, &request) })
}

func (d theirs) read(t *testing.T, id, token string) answer {
	return written(t, token, func(ctx context.Context) (proto.Message, error) {
		return d.client.GetAccount(ctx, &accountv1.GetAccountRequest{AccountId: id})
	})
}

func written(t *testing.T, token string, call func(context.Context) (proto.Message, error)) answer {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", "127.0.0.1")
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	message, err := call(ctx)
	a := answer{status: http.StatusOK}
	var body []byte
	if err != nil {
		details := problem.From(status.Convert(err), "")
		details.RequestID = "" // the yardstick has no request ids
		a.status = details.Status
		body, err = json.Marshal(details)
	} else {
		body, err = protojson.Marshal(message)
	}
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(body, &a.body))
	return a
}

// shape is an answer without what differs between any two: ids, tokens and
// times are replaced by what they are, and of broken rules the fields count.
func (a answer) shape(t *testing.T) answer {
	t.Helper()
	return answer{a.status, shape(t, a.body)}
}

func shape(t *testing.T, body map[string]any) map[string]any {
	t.Helper()
	out := map[string]any{}
	for name, value := range body {
		switch value := value.(type) {
		case map[string]any:
			out[name] = shape(t, value)
		case []any:
			var fields []string
			for _, v := range value {
				field, ok := v.(map[string]any)["field"].(string)
				require.True(t, ok, "%v", v)
				fields = append(fields, field)
			}
			slices.Sort(fields)
			out[name] = slices.Compact(fields)
		case string:
			out[name] = kind(t, name, value)
		default:
			out[name] = value
		}
	}
	return out
}

func kind(t *testing.T, name, value string) string {
	t.Helper()
	switch {
	case strings.HasSuffix(name, "Time"):
		at, err := time.Parse(time.RFC3339Nano, value)
		require.NoError(t, err)
		return "in " + time.Until(at).Round(time.Minute).String()
	case name == "accountId":
		return value[:4] + fmt.Sprint(len(value))
	case name == "accessToken":
		return fmt.Sprint("dots: ", strings.Count(value, "."))
	case name == "refreshToken":
		return value[:4]
	default:
		return value
	}
}

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

// open starts the service and the yardstick on one database.
func open(t *testing.T) (service, yardstick door, database string) {
	t.Helper()
	database = pg.Database(t)
	name, _, _ := strings.Cut(strings.TrimPrefix(database, "postgres:///"), "?")
	service = theirs{accountv1.NewAccountServiceClient(startService(t, "--database-host="+pg.SocketDir(t), "--database-name="+name, "--database-user=test"))}

	pool, err := pgxpool.New(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	hasher, err := account.NewHasher(account.HashParams{MemoryKiB: 64, Time: 1, Threads: 1}, 2, 64, rand.Reader)
	require.NoError(t, err)
	accounts, err := newAccounts(pool, hasher)
	require.NoError(t, err)
	server := httptest.NewServer(newHandler(accounts))
	t.Cleanup(server.Close)
	return service, ours{server.URL}, database
}

// startService runs accountd until the test ends, and returns once it serves.
func startService(t *testing.T, flags ...string) *grpc.ClientConn {
	t.Helper()
	built, err := release.Build(t.Context(), "accountd")
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())

	secret := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(secret, bytes.Repeat([]byte("0f"), 32), 0o600))
	var log bytes.Buffer
	cmd := exec.Command(built["accountd"].Path, append([]string{
		"--mesh=plaintext", "--environment=test", "--mode=test", "--drain-delay=0s", "--listen=" + address,
		"--key-encryption-key-file=" + secret, "--password-memory=64", "--password-passes=1",
	}, flags...)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		err := cmd.Wait()
		require.NoError(t, err, "%s", log.String())
	})
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = accountv1.NewAccountServiceClient(conn).GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
	return conn
}

const goodPassword = "violet tugboat 94"

func signUpBody(requestID, name, password string) string {
	return text(signUpRequest{RequestID: requestID, Name: name, Password: password})
}

func logInBody(name, password string) string {
	return text(logInRequest{Name: name, Password: password})
}

func text(request any) string {
	body, _ := json.Marshal(request) // strings always marshal
	return string(body)
}

func (a answer) text(t *testing.T, path ...string) string {
	t.Helper()
	var at any = a.body
	for _, name := range path {
		object, ok := at.(map[string]any)
		require.True(t, ok, "%v", a)
		at = object[name]
	}
	text, ok := at.(string)
	require.True(t, ok, "%v has no %v", a, path)
	return text
}

// The same requests, one after the other, get the same answers.
func TestAnswersAsTheService(t *testing.T) {
	service, yardstick, database := open(t)

	// What a request needs from the answers before.
	type before struct{ id, token string }
	long := strings.Repeat("n", 65)
	steps := []struct {
		name string
		send func(t *testing.T, d door, b *before, suffix string) answer
		want string // reason, or empty for an answer of the method
	}{
		{"OKSignUp", func(t *testing.T, d door, b *before, x string) answer {
			a := d.signUp(t, signUpBody("request-1-"+x, "Ada-"+x, goodPassword))
			b.id = a.text(t, "account", "accountId")
			return a
		}, ""},
		{"OKRepeat", func(t *testing.T, d door, b *before, x string) answer {
			a := d.signUp(t, signUpBody("request-1-"+x, "Ada-"+x, goodPassword))
			require.Equal(t, b.id, a.text(t, "account", "accountId"))
			return a
		}, ""},
		{"RequestIDReused", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request-1-"+x, "Bob-"+x, goodPassword))
		}, "REQUEST_ID_REUSED"},
		{"NameTakenWhateverItsCase", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request-2-"+x, "aDA-"+x, goodPassword))
		}, "NAME_TAKEN"},
		{"NothingGiven", func(t *testing.T, d door, _ *before, _ string) answer { return d.signUp(t, `{}`) }, "VALIDATION_FAILED"},
		{"WrongForms", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request 3 "+x, "-"+x, strings.Repeat("p", 257)))
		}, "VALIDATION_FAILED"},
		{"RequestIDTooShort", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("r-"+x, "Cleo-"+x, goodPassword))
		}, "VALIDATION_FAILED"},
		{"NameTooLong", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request-3-"+x, long, goodPassword))
		}, "VALIDATION_FAILED"},
		{"NameOfAnotherScript", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request-3-"+x, "\u0410da-"+x, goodPassword))
		}, "VALIDATION_FAILED"},
		{"PasswordWithControlCharacter", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request-3-"+x, "Cleo-"+x, "violet tugboat\u0007"))
		}, "VALIDATION_FAILED"},
		{"PasswordCommon", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request-3-"+x, "Cleo-"+x, "password1"))
		}, "PASSWORD_TOO_WEAK"},
		{"PasswordHoldsName", func(t *testing.T, d door, _ *before, x string) answer {
			return d.signUp(t, signUpBody("request-3-"+x, "Cleo-"+x, goodPassword+" cleo-"+x))
		}, "PASSWORD_TOO_WEAK"},
		{"OKLogIn", func(t *testing.T, d door, b *before, x string) answer {
			a := d.logIn(t, logInBody("ada-"+x, goodPassword))
			b.token = a.text(t, "accessToken")
			return a
		}, ""},
		{"WrongPassword", func(t *testing.T, d door, _ *before, x string) answer {
			return d.logIn(t, logInBody("ada-"+x, "wrong"))
		}, "WRONG_CREDENTIALS"},
		{"NobodysName", func(t *testing.T, d door, _ *before, x string) answer {
			return d.logIn(t, logInBody("nobody-"+x, goodPassword))
		}, "WRONG_CREDENTIALS"},
		{"NameWithZeroByte", func(t *testing.T, d door, _ *before, x string) answer {
			return d.logIn(t, `{"name":"ada\u0000`+x+`","password":"wrong"}`)
		}, "WRONG_CREDENTIALS"},
		{"LogInWithNothing", func(t *testing.T, d door, _ *before, _ string) answer { return d.logIn(t, `{}`) }, "VALIDATION_FAILED"},
		{"OKReadMe", func(t *testing.T, d door, b *before, _ string) answer { return d.read(t, "me", b.token) }, ""},
		{"OKReadByID", func(t *testing.T, d door, b *before, _ string) answer { return d.read(t, b.id, b.token) }, ""},
		{"ReadAnother", func(t *testing.T, d door, b *before, _ string) answer {
			return d.read(t, "acc_01HZZZZZZZZZZZZZZZZZZZZZZZ", b.token)
		}, "NOT_YOUR_ACCOUNT"},
		{"ReadWithoutToken", func(t *testing.T, d door, _ *before, _ string) answer { return d.read(t, "me", "") }, "TOKEN_MISSING"},
		{"ReadWithGarbage", func(t *testing.T, d door, _ *before, _ string) answer { return d.read(t, "me", "a.b.c") }, "TOKEN_INVALID"},
		{"ReadWithForgedToken", func(t *testing.T, d door, b *before, _ string) answer {
			return d.read(t, "me", b.token[:len(b.token)-8]+"AAAAAAAA")
		}, "TOKEN_INVALID"},
		{"Throttled", func(t *testing.T, d door, _ *before, x string) answer {
			for range account.DefaultThrottle().Name.Burst {
				require.Equal(t, http.StatusUnauthorized, d.logIn(t, logInBody("victim-"+x, "wrong")).status)
			}
			return d.logIn(t, logInBody("victim-"+x, goodPassword))
		}, "LOG_IN_THROTTLED"},
	}
	var ofService, ofYardstick before
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			want := s.send(t, service, &ofService, "one")
			got := s.send(t, yardstick, &ofYardstick, "two")
			if s.want != "" {
				require.Equal(t, s.want, want.body["reason"])
			} else {
				require.Equal(t, http.StatusOK, want.status, "%v", want.body)
				delete(want.body, "deviceToken") // the yardstick has none
				if in, ok := want.body["account"].(map[string]any); ok {
					in["name"] = strings.Replace(want.text(t, "account", "name"), "-one", "-two", 1)
				}
			}
			require.Equal(t, want.shape(t), got.shape(t))
		})
	}

	t.Run("OKSameRows", func(t *testing.T) {
		one, two := rows(t, database, ofService.id), rows(t, database, ofYardstick.id)
		require.NotEmpty(t, one)
		require.Equal(t, one, two)
	})
	t.Run("OKEachOthersAccounts", func(t *testing.T) {
		require.Equal(t, http.StatusOK, service.logIn(t, logInBody("ada-two", goodPassword)).status)
		require.Equal(t, http.StatusOK, yardstick.logIn(t, logInBody("ada-one", goodPassword)).status)
	})
}

// rows is what the database keeps of an account, without what differs between
// any two.
func rows(t *testing.T, database, accountID string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	found, err := conn.Query(t.Context(), `
SELECT 'account ' || (name_key = lower(name)) || ' ' || split_part(password_hash, '$', 4) || ' ' || length(password_hash) || ' ' || password_generation FROM accounts WHERE account_id = $1
UNION ALL
SELECT 'sign-up ' || octet_length(fingerprint) || ' ' || (expire_time - a.create_time) FROM sign_ups AS s JOIN accounts AS a USING (account_id) WHERE account_id = $1
UNION ALL
SELECT 'session ' || length(session_id) || ' ' || (refresh_time - create_time) || ' ' || (token_expire_time - create_time) || ' ' || (expire_time - create_time) || ' ' || address || ' ' || octet_length(refresh_hash) FROM sessions WHERE account_id = $1
UNION ALL
SELECT 'event ' || length(event_id) || ' ' || kind || ' ' || (actor_id = account_id) || ' ' || length(session_id) || ' ' || address FROM audit_events WHERE account_id = $1
ORDER BY 1`, accountID)
	require.NoError(t, err)
	all, err := pgx.CollectRows(found, pgx.RowTo[string])
	require.NoError(t, err)
	return all
}
