package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"image/png"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/blobs"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// What the services would refuse, but for the venue types, is seen here already.
func TestOwners(t *testing.T) {
	names, pictures := map[string]bool{}, map[string]bool{}
	require.Equal(t, []string{"demo", "demo2"}, OwnerKeys())
	for _, o := range owners() {
		require.Len(t, o.displays, 10)
		own := media{}
		for _, c := range o.creatives {
			require.False(t, pictures[c.id], c.id)
			pictures[c.id], own[c.id] = true, picture{sum: strings.Repeat("0", 64)}
			require.Regexp(t, `^[A-Z]+( [A-Z]+)*$`, c.words)
		}
		for _, d := range o.displays {
			require.False(t, names[d.name], d.name)
			names[d.name] = true
			require.NoError(t, protovalidate.Validate(d.settings()), d.name)
			require.NotZero(t, d.slot, d.name)
			require.Zero(t, d.loop%d.slot, d.name)
			_, err := time.LoadLocation(d.zone)
			require.NoError(t, err, d.name)
			items := d.items(own)
			require.GreaterOrEqual(t, len(items), 2, d.name)
			require.LessOrEqual(t, len(items), 3, d.name)
			require.LessOrEqual(t, int32(len(items))*d.slot, d.loop, d.name)
			for _, item := range items {
				require.NoError(t, protovalidate.Validate(item), "%s shows what is not its owner's", d.name)
			}
		}
	}
	require.Len(t, names, 20)
}

// Texts and bookings that the services would refuse are seen here, too.
func TestAdvertisers(t *testing.T) {
	require.Equal(t, []string{"demo", "demo2", "ads", "ads2"}, Keys())
	displays, always := map[string]display{}, 0
	for _, o := range owners() {
		for _, d := range o.displays {
			displays[d.name] = d
		}
	}
	titles, taken := map[string]bool{}, map[string]int32{}
	for _, a := range advertisers() {
		for _, o := range a.orders {
			require.False(t, titles[o.title], o.title)
			titles[o.title] = true
			require.NoError(t, protovalidate.Validate(o.text), o.title)
			currencies := map[string]bool{}
			for _, name := range o.displays {
				d, there := displays[name]
				require.True(t, there, name)
				currencies[d.currency] = true
				taken[name] += o.slots
				require.LessOrEqual(t, taken[name], d.loop/d.slot, name)
				if len(d.hours) == 0 && len(o.dayparts) == 0 {
					always++
				}
			}
			require.Len(t, currencies, 1, "%s has displays with prices in several currencies", o.title)
			for _, daypart := range o.dayparts {
				require.NoError(t, protovalidate.Validate(daypart), o.title)
			}
		}
	}
	require.GreaterOrEqual(t, always, 5, "some are on at any time")
}

func TestPictures(t *testing.T) {
	made, err := drawMedia(owners())
	require.NoError(t, err)
	sums := map[string]bool{}
	for id, p := range made {
		require.False(t, sums[p.sum], "%s looks like another", id)
		sums[p.sum] = true
		require.Less(t, len(p.content), 64<<10, "%s is not small", id)
		drawn, err := png.Decode(bytes.NewReader(p.content))
		require.NoError(t, err, id)
		require.Equal(t, pictureWidth, drawn.Bounds().Dx())
	}
	require.Len(t, sums, 6)
	for letter := byte('A'); letter <= 'Z'; letter++ {
		dots := 0
		for i := range letterWidth * letterHeight {
			if inked(letter, i%letterWidth, i/letterWidth) {
				dots++
			}
		}
		require.Greater(t, dots, 8, "%c", letter)
	}

	again, err := drawMedia(owners())
	require.NoError(t, err)
	require.Equal(t, made, again)
}

// platform answers as the account and device services do behind a gateway, and
// counts the calls that change something.
type platform struct {
	accountv1.UnimplementedAccountServiceServer
	accountv1.UnimplementedOrganisationServiceServer
	devicev1.UnimplementedDeviceServiceServer
	market

	mu            sync.Mutex
	changes       map[string]int
	passwords     map[string]string
	sessions      map[string]bool   // by owner
	organisations map[string]string // owner by organisation
	devices       map[string]*devicev1.Device
	playlists     map[string]*devicev1.Playlist
	codes         map[string]string // device by claim code
	away          int               // calls that still find nobody
	made          int               // devices so far
	claims        int               // so far
	failAfter     int               // claims that are answered, when it is not 0
	media         http.Handler      // what is uploaded, and fetched
	mediaAway     int               // requests for media that still find nobody
}

// emptyMedia takes away what was uploaded.
func (p *platform) emptyMedia(t *testing.T) {
	t.Helper()
	store, err := blobs.Open(t.Context(), "file://"+t.TempDir(), blobs.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	door, err := blobs.NewHandler(blobs.Options{Store: store, Authorize: func(r *http.Request) (string, error) {
		owner := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if r.Method == http.MethodPost {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.changes["Upload"]++
			if organisation := r.URL.Query().Get("organisation_id"); owner == "" || p.organisations[organisation] != owner {
				return "", errors.New("not a member")
			}
		}
		return owner, nil
	}})
	require.NoError(t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.media = http.StripPrefix("/v1/media", door)
}

func (p *platform) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	door := p.media
	p.mediaAway--
	away := p.mediaAway >= 0
	p.mu.Unlock()
	if away {
		http.Error(w, "nobody is there yet", http.StatusServiceUnavailable)
		return
	}
	door.ServeHTTP(w, r)
}

// players are whom the credentials are for.
type players map[string]string

func (p players) keep(_ context.Context, credentials map[string]string) error {
	clear(p)
	maps.Copy(p, credentials)
	return nil
}

func newPlatform(t *testing.T) (*platform, players, Config) {
	t.Helper()
	p := &platform{
		changes: map[string]int{}, passwords: map[string]string{}, sessions: map[string]bool{}, organisations: map[string]string{}, devices: map[string]*devicev1.Device{},
		playlists: map[string]*devicev1.Playlist{}, codes: map[string]string{}, away: 3, mediaAway: 3,
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.away > 0 {
			p.away--
			return nil, status.Error([]codes.Code{codes.Unavailable, codes.Unimplemented}[p.away%2], "nobody is there yet")
		}
		return handle(ctx, request)
	}))
	accountv1.RegisterAccountServiceServer(server, p)
	accountv1.RegisterOrganisationServiceServer(server, p)
	devicev1.RegisterDeviceServiceServer(server, p)
	p.market = market{platform: p, creatives: map[string]*orderv1.Creative{}, orders: map[string]*orderv1.Order{}, wallets: map[string]int64{}, unheard: 2}
	orderv1.RegisterOrderServiceServer(server, p)
	orderv1.RegisterCreativeServiceServer(server, p)
	orderv1.RegisterWalletServiceServer(server, p)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	p.emptyMedia(t)
	web := httptest.NewServer(p)
	t.Cleanup(web.Close)
	cfg := Config{Gateway: l.Addr().String(), HTTP: web.Listener.Addr().String(), Folder: t.TempDir()}
	have := players{}
	cfg.Credentials = func(context.Context) (map[string]string, error) { return maps.Clone(have), nil }
	cfg.Keep = have.keep
	return p, have, cfg
}

func caller(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return strings.TrimPrefix(strings.Join(md["authorization"], ""), "Bearer ")
}

func (p *platform) SignUp(_ context.Context, r *accountv1.SignUpRequest) (*accountv1.SignUpResponse, error) {
	p.changes["SignUp"]++
	p.passwords[r.GetName()] = r.GetPassword()
	return &accountv1.SignUpResponse{Account: &accountv1.Account{AccountId: "acc_" + r.GetName()}}, nil
}

func (p *platform) LogIn(_ context.Context, r *accountv1.LogInRequest) (*accountv1.LogInResponse, error) {
	if p.passwords[r.GetName()] != r.GetPassword() {
		return nil, status.Error(codes.Unauthenticated, "wrong password")
	}
	p.sessions[r.GetName()] = true
	return &accountv1.LogInResponse{AccessToken: r.GetName(), RefreshToken: r.GetName()}, nil
}

func (p *platform) LogOut(ctx context.Context, _ *accountv1.LogOutRequest) (*accountv1.LogOutResponse, error) {
	delete(p.sessions, caller(ctx))
	return &accountv1.LogOutResponse{}, nil
}

func (p *platform) RefreshSession(_ context.Context, r *accountv1.RefreshSessionRequest) (*accountv1.RefreshSessionResponse, error) {
	return &accountv1.RefreshSessionResponse{AccessToken: r.GetRefreshToken()}, nil
}

func (p *platform) CreateOrganisation(ctx context.Context, r *accountv1.CreateOrganisationRequest) (*accountv1.CreateOrganisationResponse, error) {
	p.changes["CreateOrganisation"]++
	id := "org_" + r.GetName()
	p.organisations[id] = caller(ctx)
	return &accountv1.CreateOrganisationResponse{Organisation: &accountv1.Organisation{OrganisationId: id, Name: r.GetName()}}, nil
}

func (p *platform) ListDevices(ctx context.Context, r *devicev1.ListDevicesRequest) (*devicev1.ListDevicesResponse, error) {
	if p.organisations[r.GetOrganisationId()] != caller(ctx) {
		return nil, status.Error(codes.PermissionDenied, "not a member")
	}
	answer := &devicev1.ListDevicesResponse{}
	for _, device := range p.devices {
		if device.GetOrganisationId() == r.GetOrganisationId() {
			answer.Devices = append(answer.Devices, device)
		}
	}
	return answer, nil
}

func (p *platform) CreateDevice(_ context.Context, r *devicev1.CreateDeviceRequest) (*devicev1.CreateDeviceResponse, error) {
	p.changes["CreateDevice"]++
	p.made++
	device := &devicev1.Device{
		DeviceId: fmt.Sprint("dev_", p.made), OrganisationId: r.GetOrganisationId(), Settings: r.GetSettings(),
		State: devicev1.DeviceState_DEVICE_STATE_UNCLAIMED,
	}
	p.devices[device.GetDeviceId()] = device
	return &devicev1.CreateDeviceResponse{Device: device}, nil
}

func (p *platform) GetPlaylist(_ context.Context, r *devicev1.GetPlaylistRequest) (*devicev1.GetPlaylistResponse, error) {
	return &devicev1.GetPlaylistResponse{Playlist: p.playlists[r.GetDeviceId()]}, nil
}

func (p *platform) PutDefaultPlaylist(_ context.Context, r *devicev1.PutDefaultPlaylistRequest) (*devicev1.PutDefaultPlaylistResponse, error) {
	p.changes["PutDefaultPlaylist"]++
	p.playlists[r.GetDeviceId()] = &devicev1.Playlist{Version: p.playlists[r.GetDeviceId()].GetVersion() + 1, Items: r.GetItems()}
	return &devicev1.PutDefaultPlaylistResponse{Playlist: p.playlists[r.GetDeviceId()]}, nil
}

func (p *platform) CreateClaimCode(_ context.Context, r *devicev1.CreateClaimCodeRequest) (*devicev1.CreateClaimCodeResponse, error) {
	code := fmt.Sprint("code-", len(p.codes))
	p.codes[code] = r.GetDeviceId()
	return &devicev1.CreateClaimCodeResponse{ClaimCode: code}, nil
}

func (p *platform) ClaimDevice(ctx context.Context, r *devicev1.ClaimDeviceRequest) (*devicev1.ClaimDeviceResponse, error) {
	id := p.codes[r.GetClaimCode()]
	if id == "" || caller(ctx) != "" {
		return nil, status.Error(codes.Unauthenticated, "no such code")
	}
	p.codes[r.GetClaimCode()] = ""
	p.changes["ClaimDevice"]++
	p.devices[id].State = devicev1.DeviceState_DEVICE_STATE_CLAIMED
	p.claims++
	switch {
	case p.claims == 1:
		return nil, status.Error(codes.Unavailable, "the answer is lost")
	case p.failAfter > 0 && p.claims > p.failAfter:
		return nil, status.Error(codes.Internal, "broken")
	}
	return &devicev1.ClaimDeviceResponse{Credentials: &devicev1.Credentials{DeviceId: id, Secret: fmt.Sprint("secret-", p.claims)}}, nil
}

// taken are the changes since it was asked last.
func (p *platform) taken() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.changes
	p.changes = map[string]int{}
	return taken
}

func TestMake(t *testing.T) {
	p, have, cfg := newPlatform(t)
	first, err := Make(t.Context(), cfg)
	require.NoError(t, err)
	require.True(t, first.Changed)
	require.Len(t, have, 20)
	// The claim whose answer was lost was made once more, with a new code.
	require.Equal(t, map[string]int{
		"SignUp": 4, "CreateOrganisation": 4, "CreateDevice": 20, "PutDefaultPlaylist": 20, "ClaimDevice": 21, "Upload": 6,
		"CreateCreative": 5, "HoldOrder": 5, "BookOrder": 5, "TopUpWallet": 4, "DecideApproval": 6,
	}, p.taken())
	require.Empty(t, p.sessions, "somebody is still logged in")
	for _, o := range first.Owners {
		require.Len(t, o.Displays, 10)
		for _, d := range o.Displays {
			require.Equal(t, d.Name, p.devices[d.DeviceID].GetSettings().GetName())
			require.NotEmpty(t, have[d.DeviceID])
			for _, item := range p.playlists[d.DeviceID].GetItems() {
				require.Equal(t, "/v1/media/"+item.GetSha256(), item.GetUrl())
				content, err := http.Get("http://" + cfg.HTTP + item.GetUrl())
				require.NoError(t, err)
				text, err := io.ReadAll(content.Body)
				require.NoError(t, errors.Join(err, content.Body.Close()))
				require.Equal(t, "image/png", content.Header.Get("Content-Type"))
				require.Equal(t, item.GetSha256(), fmt.Sprintf("%x", sha256.Sum256(text)))
			}
		}
		info, err := os.Stat(filepath.Join(cfg.Folder, o.Key+"-account.json"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
		read, err := ReadAccount(cfg.Folder, o.Key)
		require.NoError(t, err)
		require.Equal(t, []string{o.Name, o.Password, o.OrganisationID}, []string{read.Name, read.Password, read.OrganisationID})
	}
	require.Len(t, first.Advertisers, 2)
	for _, a := range first.Advertisers {
		require.NotEmpty(t, a.Orders)
		for _, o := range a.Orders {
			require.Equal(t, o.Title, p.orders[o.OrderID].GetTitle())
			require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, p.orders[o.OrderID].GetState())
		}
	}
	for _, c := range p.creatives {
		require.NotEmpty(t, c.GetVersions()[0].GetApprovals())
		for _, a := range c.GetVersions()[0].GetApprovals() {
			require.Equal(t, orderv1.ApprovalState_APPROVAL_STATE_APPROVED, a.GetState())
		}
	}

	again := func() Demo {
		t.Helper()
		found, err := Make(t.Context(), cfg)
		require.NoError(t, err)
		return found
	}
	t.Run("SecondTimeChangesNothing", func(t *testing.T) {
		found := again()
		require.False(t, found.Changed)
		require.Equal(t, first.Owners, found.Owners)
		require.Equal(t, first.Advertisers, found.Advertisers)
		require.Empty(t, p.taken())
		require.Empty(t, p.sessions, "somebody is still logged in")
	})
	t.Run("WhatIsOverIsBookedAgain", func(t *testing.T) {
		over := p.orders[first.Advertisers[0].Orders[0].OrderID]
		for _, line := range over.GetLines() {
			line.EndTime = timestamppb.New(time.Now().Add(-time.Hour))
		}
		found := again()
		require.True(t, found.Changed)
		require.NotEqual(t, over.GetOrderId(), found.Advertisers[0].Orders[0].OrderID)
		require.Equal(t, map[string]int{"HoldOrder": 1, "BookOrder": 1}, p.taken())
		first = found
	})
	t.Run("ACancelledOrderStaysSo", func(t *testing.T) {
		p.orders[first.Advertisers[0].Orders[0].OrderID].State = orderv1.OrderState_ORDER_STATE_CANCELLED
		require.False(t, again().Changed)
		require.Empty(t, p.taken())
	})
	t.Run("AHoldIsGoneOnWith", func(t *testing.T) {
		o := p.orders[first.Advertisers[1].Orders[0].OrderID]
		o.State = orderv1.OrderState_ORDER_STATE_HELD
		require.True(t, again().Changed)
		require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, o.GetState())
		require.Equal(t, map[string]int{"BookOrder": 1}, p.taken())
	})
	t.Run("OthersDecideOnWhatIsEdited", func(t *testing.T) {
		for _, c := range p.creatives {
			edited := &orderv1.CreativeVersion{Version: 2, Approvals: []*orderv1.Approval{{CreativeId: c.GetCreativeId(), Version: 2, State: orderv1.ApprovalState_APPROVAL_STATE_PENDING}}}
			c.Versions = []*orderv1.CreativeVersion{edited, c.GetVersions()[0]}
		}
		require.False(t, again().Changed)
		require.Empty(t, p.taken())
	})
	id := first.Owners[0].Displays[0].DeviceID
	t.Run("WhatPeopleChangedStays", func(t *testing.T) {
		byHand := &devicev1.Playlist{Version: 7, Items: []*devicev1.PlaylistItem{{CreativeId: "mine"}}}
		p.playlists[id] = byHand
		p.playlists[first.Owners[0].Displays[1].DeviceID] = &devicev1.Playlist{Version: 8} // taken down
		revoked := first.Owners[1].Displays[0].DeviceID
		p.devices[revoked].State = devicev1.DeviceState_DEVICE_STATE_REVOKED
		require.False(t, again().Changed)
		require.Same(t, byHand, p.playlists[id])
		require.Empty(t, p.taken())
	})
	t.Run("LostCredentialsAreClaimedAnew", func(t *testing.T) {
		before := maps.Clone(have)
		delete(have, id)
		require.True(t, again().Changed)
		require.NotEqual(t, before[id], have[id])
		before[id] = have[id]
		require.Equal(t, before, have, "nobody else is thrown out")
		require.Equal(t, map[string]int{"ClaimDevice": 1}, p.taken())
	})
	t.Run("ADeletedDisplayComesBack", func(t *testing.T) {
		delete(p.devices, id)
		found := again()
		require.True(t, found.Changed)
		require.NotEqual(t, id, found.Owners[0].Displays[0].DeviceID)
		require.Len(t, have, 20)
		require.NotContains(t, have, id)
		require.Equal(t, map[string]int{"CreateDevice": 1, "PutDefaultPlaylist": 1, "ClaimDevice": 1}, p.taken())
	})
	t.Run("MediaElsewhere", func(t *testing.T) {
		p.playlists[first.Owners[1].Displays[1].DeviceID].Items[0].Url = "http://127.0.0.1:1/" + strings.Repeat("0", 64)
		require.True(t, again().Changed)
		require.Equal(t, map[string]int{"PutDefaultPlaylist": 1}, p.taken())
		require.False(t, again().Changed)
	})
	t.Run("MediaLost", func(t *testing.T) {
		p.emptyMedia(t)
		require.True(t, again().Changed)
		require.Equal(t, map[string]int{"Upload": 6}, p.taken())
		require.False(t, again().Changed)
	})
}

// Of two who make it at the same time one does.
func TestMakeTwiceAtOnce(t *testing.T) {
	p, have, cfg := newPlatform(t)
	var changed [2]bool
	var group errgroup.Group
	for i := range changed {
		group.Go(func() error {
			made, err := Make(t.Context(), cfg)
			changed[i] = made.Changed
			return err
		})
	}
	require.NoError(t, group.Wait())
	require.NotEqual(t, changed[0], changed[1])
	require.Len(t, have, 20)
	require.Len(t, p.devices, 20)
}

// What was claimed before something went wrong is not claimed again.
func TestMakeGoesOn(t *testing.T) {
	p, have, cfg := newPlatform(t)
	p.failAfter = 12
	_, err := Make(t.Context(), cfg)
	require.ErrorContains(t, err, "claiming")
	require.NotEmpty(t, have)
	require.LessOrEqual(t, len(have), 11, "of twelve answers the first is lost")
	before := maps.Clone(have)

	p.mu.Lock()
	p.failAfter = 0
	p.mu.Unlock()
	_, err = Make(t.Context(), cfg)
	require.NoError(t, err)
	require.Len(t, have, 20)
	for id, secret := range before {
		require.Equal(t, secret, have[id])
	}

	clear(have)
	cfg.Keep = func(context.Context, map[string]string) error { return errors.New("the disk is full") }
	_, err = Make(t.Context(), cfg)
	require.ErrorContains(t, err, "keeping the credentials of the displays: the disk is full")
}

func TestMakeAccount(t *testing.T) {
	p, _, cfg := newPlatform(t)
	_, err := ReadAccount(cfg.Folder, "demo")
	require.ErrorContains(t, err, "marquee up makes it")
	_, err = ReadAccount(cfg.Folder, "root")
	require.ErrorContains(t, err, `nobody is called "root"`)
	made, err := MakeAccount(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, made.Password, p.passwords["demo@example.com"])
	again, err := MakeAccount(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, made, again)
	require.Equal(t, map[string]int{"SignUp": 1}, p.taken())
}
