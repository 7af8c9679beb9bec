package warehouse

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Names inside the engine.
const (
	Database     = "ctrloop"         // of all tables
	appUser      = "ctrloop"         // the application: everything
	readOnlyUser = "ctrloop_analyst" // user SQL: reads Database and a few system tables
)

// Bounds of user SQL. A query may ask for less (SQL's Limits), never for more.
const (
	readOnlyMaxRows    = 10_000_000
	readOnlyMaxSeconds = 60
)

// credentials are drawn once per data directory, so that a DSN stays valid over restarts of the program.
type credentials struct {
	App      string `json:"app_password"`
	ReadOnly string `json:"read_only_password"`
}

// loadCredentials reads the passwords, draws those that are missing, and replaces the application's by the given one.
func loadCredentials(path, given string) (credentials, error) {
	var c credentials
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c = credentials{App: randomHex(16), ReadOnly: randomHex(16)}
	case err != nil:
		return c, fmt.Errorf("read the engine's passwords: %w", err)
	default:
		if err := json.Unmarshal(b, &c); err != nil || c.App == "" || c.ReadOnly == "" {
			return c, fmt.Errorf("%s is damaged: delete it, new passwords will be drawn", path)
		}
		if given == "" || given == c.App {
			return c, nil
		}
	}
	if given != "" {
		c.App = given
	}
	b, err = json.Marshal(c)
	if err != nil {
		return c, err
	}
	return c, writePrivate(path, b)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand.Read never fails (Go 1.24)
	return hex.EncodeToString(b)
}

// writePrivate replaces a file by rename, readable by the owner only.
func writePrivate(path string, b []byte) error {
	tmp := path + ".new"
	_ = os.Remove(tmp) // an older one may have wider permissions
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func xmlText(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
	return b.String()
}

// serverConfig is config.xml. display_name carries the nonce that proves whose answer a port gives.
func serverConfig(dir, nonce string, tcp, http int, maxMemory int64, remoteServers string) string {
	at := func(parts ...string) string { return xmlText(filepath.Join(append([]string{dir}, parts...)...)) }
	return fmt.Sprintf(`<clickhouse>
  <logger>
    <level>information</level><log>%[1]s/server.log</log><errorlog>%[1]s/error.log</errorlog>
    <size>10M</size><count>2</count><console>0</console>
  </logger>
  <console_log_level>none</console_log_level>
  <display_name>%[2]s</display_name>
  <timezone>UTC</timezone>
  <path>%[3]s/</path>
  <tmp_path>%[3]s/tmp/</tmp_path>
  <user_files_path>%[3]s/user_files/</user_files_path>
  <listen_host>127.0.0.1</listen_host>
  <tcp_port>%[4]d</tcp_port>
  <http_port>%[5]d</http_port>
  <users_config>%[6]s</users_config>
  <user_directories><users_xml><path>%[6]s</path></users_xml></user_directories>
  <access_control_improvements>
    <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>
    <settings_constraints_replace_previous>true</settings_constraints_replace_previous>
  </access_control_improvements>
  <default_profile>default</default_profile>
  <max_server_memory_usage>%[7]d</max_server_memory_usage>
  <mark_cache_size>268435456</mark_cache_size>
  <background_pool_size>4</background_pool_size>
  <background_schedule_pool_size>16</background_schedule_pool_size>
  <background_common_pool_size>4</background_common_pool_size>
  <shutdown_wait_unfinished>1</shutdown_wait_unfinished>
  <keep_alive_timeout>10</keep_alive_timeout>
  <query_log>
    <database>system</database><table>query_log</table><flush_interval_milliseconds>7500</flush_interval_milliseconds>
    <ttl>event_date + INTERVAL 3 DAY DELETE</ttl>
  </query_log>
  <part_log>
    <database>system</database><table>part_log</table><flush_interval_milliseconds>7500</flush_interval_milliseconds>
    <ttl>event_date + INTERVAL 3 DAY DELETE</ttl>
  </part_log>
  <remote_servers>%[8]s</remote_servers>
</clickhouse>
`, at("log"), nonce, at("data"), tcp, http, at("users.xml"), maxMemory, remoteServers)
}

// querySettings are those of both profiles. Views that put levels of rollups together are read by as many streams as there
// are threads: with some for each level, grouping by user would build a table of users in every one of them (a lift
// took 1.4 GB and 1.1 s of processor time instead of 0.5 and 0.6). And a thread needs 256 MiB of free memory, not 1 GiB, by which
// every question to an engine of 2 GiB had one thread.
const querySettings = "<do_not_merge_across_partitions_select_final>1</do_not_merge_across_partitions_select_final>" +
	"<max_streams_for_union_step_to_max_threads_ratio>1</max_streams_for_union_step_to_max_threads_ratio>" +
	"<max_threads_min_free_memory_per_thread>268435456</max_threads_min_free_memory_per_thread>"

// usersConfig is users.xml. "default" is who the engine's own console logs in as: it may open the ports
// and nothing else. Passwords are there as hashes only.
func usersConfig(c credentials, maxMemory int64) string {
	hash := func(p string) string {
		h := sha256.Sum256([]byte(p))
		return hex.EncodeToString(h[:])
	}
	return fmt.Sprintf(`<clickhouse>
  <profiles>
    <default><log_queries>1</log_queries>%[9]s</default>
    <analyst>
      <readonly>1</readonly>
      %[9]s
      <cancel_http_readonly_queries_on_client_close>1</cancel_http_readonly_queries_on_client_close>
      <max_execution_time>%[1]d</max_execution_time>
      <max_result_rows>%[2]d</max_result_rows>
      <result_overflow_mode>throw</result_overflow_mode>
      <max_memory_usage>%[3]d</max_memory_usage>
      <constraints>
        <max_execution_time><min>1</min><max>%[1]d</max><changeable_in_readonly/></max_execution_time>
        <max_result_rows><min>1</min><max>%[2]d</max><changeable_in_readonly/></max_result_rows>
      </constraints>
    </analyst>
  </profiles>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>
      <grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants>
    </default>
    <%[4]s>
      <password_sha256_hex>%[5]s</password_sha256_hex>
      <networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>
      <access_management>0</access_management>
    </%[4]s>
    <%[6]s>
      <password_sha256_hex>%[7]s</password_sha256_hex>
      <networks><ip>127.0.0.1</ip></networks><profile>analyst</profile><quota>default</quota>
      <grants><query>GRANT SELECT ON %[8]s.*</query><query>GRANT SELECT ON system.numbers</query></grants>
    </%[6]s>
  </users>
  <quotas><default><interval>
    <duration>3600</duration><queries>0</queries><errors>0</errors>
    <result_rows>0</result_rows><read_rows>0</read_rows><execution_time>0</execution_time>
  </interval></default></quotas>
</clickhouse>
`, readOnlyMaxSeconds, readOnlyMaxRows, maxMemory/2, appUser, hash(c.App), readOnlyUser, hash(c.ReadOnly), Database, querySettings)
}
