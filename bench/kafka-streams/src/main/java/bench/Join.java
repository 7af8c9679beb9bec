package bench;

import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.JoinWindows;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.StreamJoined;
import org.apache.kafka.streams.kstream.ValueJoiner;
import org.apache.kafka.streams.state.RocksDBConfigSetter;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.BloomFilter;
import org.rocksdb.Cache;
import org.rocksdb.CompressionType;
import org.rocksdb.LRUCache;
import org.rocksdb.Options;
import org.rocksdb.RocksDB;
import org.rocksdb.WriteBufferManager;

/**
 * Impressions LEFT JOIN clicks on the impression id, a click within the window after its impression, exactly once: what
 * `ctrloop bench peers` measures the joiner against. Settings come from the environment. It prints READY when it is
 * about to start its streams and runs until SIGTERM; whoever started it watches its output and its processor time.
 *
 * The output has one record an impression: 1 (clicked) or 0, and the impression.
 */
public final class Join {
  static String env(String name, String otherwise) {
    return System.getenv().getOrDefault(name, otherwise);
  }

  static int number(String name, int otherwise) {
    return Integer.parseInt(env(name, String.valueOf(otherwise)));
  }

  static Properties settings(String app, Path state) {
    Properties p = new Properties();
    Map<String, Object> all = new java.util.HashMap<>(Map.of(
        "bootstrap.servers", env("BOOTSTRAP", "127.0.0.1:9092"),
        "application.id", app, "state.dir", state.toString(),
        "processing.guarantee", "exactly_once_v2", "auto.offset.reset", "earliest",
        "commit.interval.ms", number("COMMIT_MS", 100), "num.stream.threads", number("THREADS", 2), "replication.factor", 1));
    if (!env("TUNED", "1").equals("0")) {
      // Larger bites everywhere; with the defaults it was as fast within noise.
      all.putAll(Map.of(
          "buffered.records.per.partition", 20000, "statestore.cache.max.bytes", 128 << 20, "topology.optimization", "all",
          "main.consumer.max.poll.records", 10000, "main.consumer.max.partition.fetch.bytes", 8 << 20,
          "main.consumer.fetch.max.bytes", 64 << 20, "main.consumer.receive.buffer.bytes", 1 << 20));
      all.putAll(Map.of(
          "producer.linger.ms", 20, "producer.batch.size", 256 << 10, "producer.buffer.memory", 128 << 20, "producer.compression.type", "lz4",
          "rocksdb.config.setter", Stores.class.getName()));
    }
    all.forEach((k, v) -> p.put(k, String.valueOf(v)));
    return p;
  }

  /** One cache and one budget of write buffers for all stores; no compression: disk is not what is measured. */
  public static final class Stores implements RocksDBConfigSetter {
    static {
      RocksDB.loadLibrary();
    }

    static final Cache CACHE = new LRUCache(256L << 20);
    static final WriteBufferManager BUFFERS = new WriteBufferManager(512L << 20, CACHE);

    @Override
    public void setConfig(String store, Options options, Map<String, Object> configs) {
      BlockBasedTableConfig table = (BlockBasedTableConfig) options.tableFormatConfig();
      table.setBlockCache(CACHE);
      table.setFilterPolicy(new BloomFilter(10, false));
      options.setWriteBufferManager(BUFFERS);
      options.setWriteBufferSize(32L << 20);
      options.setMaxWriteBufferNumber(3);
      options.setCompressionType(CompressionType.NO_COMPRESSION);
    }

    @Override
    public void close(String store, Options options) {}
  }

  public static void main(String[] args) throws Exception {
    StreamsBuilder b = new StreamsBuilder();
    var bytes = Consumed.with(Serdes.ByteArray(), Serdes.ByteArray());
    // Punctuation has no key; a left join would hand it on.
    KStream<byte[], byte[]> impressions = b.stream(env("IMPRESSIONS_TOPIC", "imp.v1"), bytes).filter((k, v) -> k != null);
    KStream<byte[], byte[]> clicks = b.stream(env("CLICKS_TOPIC", "clk.v1"), bytes);
    JoinWindows window = JoinWindows
        .ofTimeDifferenceAndGrace(Duration.ofMillis(number("WINDOW_MS", 1_800_000)), Duration.ofMillis(number("GRACE_MS", 60_000)))
        .before(Duration.ZERO);
    ValueJoiner<byte[], byte[], byte[]> label = (impression, click) -> {
      byte[] out = new byte[1 + impression.length];
      out[0] = (byte) (click == null ? 0 : 1);
      System.arraycopy(impression, 0, out, 1, impression.length);
      return out;
    };
    impressions.leftJoin(clicks, label, window, StreamJoined.with(Serdes.ByteArray(), Serdes.ByteArray(), Serdes.ByteArray()))
        .to(env("OUT_TOPIC", "bench.streams"), Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));

    String app = env("APP", "bench-streams");
    Path state = Path.of(env("STATE", "streams-state")).resolve(app);
    Files.createDirectories(state);
    KafkaStreams streams = new KafkaStreams(b.build(), settings(app, state));
    CountDownLatch stop = new CountDownLatch(1);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      stop.countDown();
      streams.close(Duration.ofSeconds(20));
    }));
    streams.setUncaughtExceptionHandler(e -> {
      e.printStackTrace();
      return org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
    });
    System.out.println("READY");
    System.out.flush();
    streams.start();
    stop.await();
  }
}
