package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/stack"
)

// demoAccount is an account to try the platform with, kept in the cluster's
// folder, readable by its owner alone.
type demoAccount struct {
	Name      string `json:"name"`
	Password  string `json:"password"`
	RequestID string `json:"request_id"`
	// AccountID is empty until the account was made.
	AccountID string `json:"account_id,omitempty"`
}

func demoPath(s *stack.Stack) string { return filepath.Join(s.Cluster().Dir(), "demo-account.json") }

func readDemoAccount(s *stack.Stack) (demoAccount, error) {
	var demo demoAccount
	text, err := os.ReadFile(demoPath(s))
	if errors.Is(err, fs.ErrNotExist) {
		return demo, nil
	}
	if err != nil {
		return demo, fmt.Errorf("reading the demo account: %w", err)
	}
	if err := json.Unmarshal(text, &demo); err != nil {
		return demo, fmt.Errorf("reading the demo account from %s: %w", demoPath(s), err)
	}
	return demo, nil
}

func writeDemoAccount(s *stack.Stack, demo demoAccount) error {
	text, err := json.MarshalIndent(demo, "", "  ")
	if err != nil {
		return err
	}
	if err := files.Replace(demoPath(s), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping the demo account: %w", err)
	}
	return nil
}

// ensureDemoAccount signs the demo account up unless that was done before. The
// request_id is kept before it is used, so that a sign-up that was cut off is
// repeated and not made twice.
func ensureDemoAccount(ctx context.Context, s *stack.Stack, door stack.Gateway) (demoAccount, error) {
	demo, err := readDemoAccount(s)
	if err != nil || demo.AccountID != "" {
		return demo, err
	}
	if demo.Name == "" {
		demo = demoAccount{Name: "demo@example.com", Password: rand.Text(), RequestID: "demo-" + rand.Text()}
		if err := writeDemoAccount(s, demo); err != nil {
			return demo, err
		}
	}
	body, err := json.Marshal(map[string]string{"request_id": demo.RequestID, "name": demo.Name, "password": demo.Password})
	if err != nil {
		return demo, err
	}
	var answer struct {
		Account struct {
			AccountID string `json:"accountId"`
		} `json:"account"`
	}
	if err := postJSON(ctx, "http://"+door.HTTP+"/v1/accounts", body, &answer); err != nil {
		return demo, fmt.Errorf("making the demo account: %w", err)
	}
	demo.AccountID = answer.Account.AccountID
	return demo, writeDemoAccount(s, demo)
}

func postJSON(ctx context.Context, url string, body []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("POST %s: %s: %s", url, response.Status, text)
	}
	return json.Unmarshal(text, answer)
}

// demoToken logs the demo account in and returns its access token.
func demoToken(ctx context.Context, s *stack.Stack, a *api, conn grpc.ClientConnInterface) (string, error) {
	demo, err := readDemoAccount(s)
	if err != nil {
		return "", err
	}
	if demo.AccountID == "" {
		return "", errors.New("there is no demo account: marquee up makes it")
	}
	method, err := a.method("marquee.account.v1.AccountService/LogIn")
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]string{"name": demo.Name, "password": demo.Password})
	if err != nil {
		return "", err
	}
	request := dynamicpb.NewMessage(method.Input())
	if err := protojson.Unmarshal(body, request); err != nil {
		return "", fmt.Errorf("logging the demo account in: %w", err)
	}
	response := dynamicpb.NewMessage(method.Output())
	if err := conn.Invoke(ctx, methodPath(method), request, response); err != nil {
		return "", fmt.Errorf("logging the demo account in: %w", err)
	}
	token := method.Output().Fields().ByName("access_token")
	if token == nil {
		return "", fmt.Errorf("logging the demo account in: %s has no access_token", method.Output().FullName())
	}
	return response.Get(token).String(), nil
}
