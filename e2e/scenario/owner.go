package scenario

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
)

// Owner is somebody who owns an organisation, of displays or one that advertises on
// them.
type Owner struct {
	Doors        Doors
	Organisation string
	// Token is good for five minutes; see LogIn.
	Token string

	name string
}

// NewOwner signs up through these doors and makes an organisation that owns displays.
func NewOwner(ctx context.Context, t testing.TB, doors Doors) *Owner {
	t.Helper()
	return newOwner(ctx, t, doors, "Displays", "ORGANISATION_KIND_DISPLAY_OWNER")
}

// NewAdvertiser signs up through these doors and makes an organisation that
// advertises.
func NewAdvertiser(ctx context.Context, t testing.TB, doors Doors) *Owner {
	t.Helper()
	return newOwner(ctx, t, doors, "Advertiser", "ORGANISATION_KIND_ADVERTISER")
}

func newOwner(ctx context.Context, t testing.TB, doors Doors, organisation, kind string) *Owner {
	t.Helper()
	o := &Owner{Doors: doors, name: fmt.Sprintf("e2e-%s-%d", strings.ToLower(organisation), time.Now().UnixNano())}
	require.NoError(t, o.Call(ctx, http.MethodPost, "/v1/accounts", map[string]string{"requestId": "sign-up-" + o.name, "name": o.name, "password": Password}, nil))
	require.NoError(t, o.LogIn(ctx))
	var made struct {
		Organisation struct{ OrganisationID string }
	}
	require.NoError(t, o.Call(ctx, http.MethodPost, "/v1/organisations", map[string]string{
		"requestId": "organisation", "name": organisation, "kind": kind,
	}, &made))
	o.Organisation = made.Organisation.OrganisationID
	require.NoError(t, o.LogIn(ctx), "for a token that has the role")
	return o
}

// LogIn gets another token, with the roles of now.
func (o *Owner) LogIn(ctx context.Context) error {
	var session struct{ AccessToken string }
	o.Token = ""
	if err := o.Call(ctx, http.MethodPost, "/v1/sessions", map[string]string{"name": o.name, "password": Password}, &session); err != nil {
		return err
	}
	o.Token = session.AccessToken
	return nil
}

// Call calls a method of the REST API, at another gateway when one is not there:
// what makes something has to carry a request_id. body and out are as in JSON, nil
// for none.
func (o *Owner) Call(ctx context.Context, method, path string, body, out any) error {
	if _, err := o.Doors.REST.Do(ctx, load.Request{Method: method, Path: path, Token: o.Token, Body: body, Idempotent: true}, out); err != nil {
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
