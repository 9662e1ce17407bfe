package scenario

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// tokenFor is for how long an owner calls with one access token, which is good for
// five minutes.
const tokenFor = 4 * time.Minute

// Owner is somebody who owns an organisation, of displays or one that advertises on
// them, for many callers at once and as long as it takes.
type Owner struct {
	Doors        Doors
	Organisation string

	name, password string

	mu    sync.Mutex // guards the rest
	token string
	since time.Time // when it was made
}

// NewOwner signs up through these doors and makes an organisation that owns displays.
func NewOwner(ctx context.Context, t testing.TB, doors Doors) *Owner {
	t.Helper()
	return newOwner(ctx, t, doors, "Displays", "ORGANISATION_KIND_DISPLAY_OWNER")
}

// NewAdvertiser signs up through these doors and makes an organisation that
// advertises, which has no money.
func NewAdvertiser(ctx context.Context, t testing.TB, doors Doors) *Owner {
	t.Helper()
	return newOwner(ctx, t, doors, "Advertiser", "ORGANISATION_KIND_ADVERTISER")
}

func newOwner(ctx context.Context, t testing.TB, doors Doors, organisation, kind string) *Owner {
	t.Helper()
	name := fmt.Sprintf("e2e-%s-%d", strings.ToLower(organisation), time.Now().UnixNano())
	signUp := load.Request{Method: http.MethodPost, Path: "/v1/accounts", Idempotent: true, Body: map[string]string{
		"requestId": "sign-up-" + name, "name": name, "password": Password,
	}}
	_, err := doors.REST.Do(ctx, signUp, nil)
	require.NoError(t, err)
	o := Returning(doors, name, Password, "")
	var made struct {
		Organisation struct{ OrganisationID string }
	}
	require.NoError(t, o.Call(ctx, http.MethodPost, "/v1/organisations", map[string]string{
		"requestId": "organisation", "name": organisation, "kind": kind,
	}, &made))
	return Returning(doors, name, Password, made.Organisation.OrganisationID) // for a token that has the role
}

// Returning is somebody who has signed up before, and owns the organisation.
func Returning(doors Doors, name, password, organisation string) *Owner {
	return &Owner{Doors: doors, Organisation: organisation, name: name, password: password}
}

// Token is an access token that is good for a minute at least.
func (o *Owner) Token(ctx context.Context) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.since) > tokenFor {
		now := time.Now()
		logIn := load.Request{Method: http.MethodPost, Path: "/v1/sessions", Body: map[string]string{"name": o.name, "password": o.password}, Idempotent: true}
		var session struct{ AccessToken string }
		if _, err := o.Doors.REST.Do(ctx, logIn, &session); err != nil {
			return "", fmt.Errorf("log in: %w", err)
		}
		o.token, o.since = session.AccessToken, now
	}
	return o.token, nil
}

// TopUp brings money into the wallet, in minor units.
func (o *Owner) TopUp(ctx context.Context, requestID string, money int64, currency string) error {
	return o.Ask(ctx, GRPC, &orderv1.TopUpWalletRequest{
		RequestId: requestID, Amount: &orderv1.Money{AmountMinor: money, Currency: currency}, PaymentMethod: "test",
	}, nil)
}

// Call calls a method of the REST API, at another gateway when one is not there:
// what makes something has to carry a request_id. body and out are as in JSON, nil
// for none.
func (o *Owner) Call(ctx context.Context, method, path string, body, out any) error {
	token, err := o.Token(ctx)
	if err != nil {
		return err
	}
	if _, err := o.Doors.REST.Do(ctx, load.Request{Method: method, Path: path, Token: token, Body: body, Idempotent: true}, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// On is the path of something below the organisation's devices: "" is all of them,
// "/" and an id is one.
func (o *Owner) On(device string) string {
	return "/v1/organisations/" + o.Organisation + "/devices" + device
}

// ClaimCode makes a device with these settings, and the code that its player trades.
func (o *Owner) ClaimCode(ctx context.Context, requestID string, settings map[string]any) (id, code string, err error) {
	var made struct{ Device struct{ DeviceID string } }
	if err := o.Call(ctx, http.MethodPost, o.On(""), map[string]any{"requestId": requestID, "settings": settings}, &made); err != nil {
		return "", "", err
	}
	id = made.Device.DeviceID
	var answer struct{ ClaimCode string }
	err = o.Call(ctx, http.MethodPost, o.On("/"+id+"/claim-code"), struct{}{}, &answer)
	return id, answer.ClaimCode, err
}

// Enrol makes a device with these settings, and trades its claim code for its
// player's secret.
func (o *Owner) Enrol(ctx context.Context, requestID string, settings map[string]any) (id, secret string, err error) {
	id, code, err := o.ClaimCode(ctx, requestID, settings)
	if err != nil {
		return "", "", err
	}
	var claimed struct{ Credentials struct{ Secret string } }
	err = o.Call(ctx, http.MethodPost, "/v1/devices:claim", map[string]string{"claimCode": code}, &claimed)
	return id, claimed.Credentials.Secret, err
}

// Online is how many of the organisation's devices are shown as connected.
func (o *Owner) Online(ctx context.Context) (int, error) {
	online := 0
	for next := ""; ; {
		var page struct {
			Devices []struct {
				Presence struct{ Online bool }
			}
			NextPageToken string
		}
		if err := o.Call(ctx, http.MethodGet, o.On("?pageSize=200&pageToken="+url.QueryEscape(next)), nil, &page); err != nil {
			return 0, err
		}
		for _, device := range page.Devices {
			if device.Presence.Online {
				online++
			}
		}
		if next = page.NextPageToken; next == "" {
			return online, nil
		}
	}
}
