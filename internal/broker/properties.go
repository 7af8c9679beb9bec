package broker

import (
	"fmt"
)

// nodeID of the broker, which is its own controller.
const nodeID = 1

// controllerProperties is server.properties of the controller alone.
func controllerProperties(controller int) string {
	return "process.roles=controller\n" + fmt.Sprintf("listeners=CONTROLLER://127.0.0.1:%d\n", controller) + sharedProperties(controller)
}

// sharedProperties are those of the broker and of the controller alone.
func sharedProperties(controller int) string {
	return fmt.Sprintf(`node.id=%[1]d
controller.quorum.voters=%[1]d@127.0.0.1:%[2]d
controller.listener.names=CONTROLLER
# A controller that was the leader when it ended waits for others to stand first. There are none.
controller.quorum.election.timeout.ms=50
# In its working folder: a list, whose names must not have a comma.
log.dirs=%[3]s
`, nodeID, controller, dataFolder)
}

// properties is server.properties of a broker that is its own controller. Each setting that differs from Kafka's default says why.
func properties(port, controller int) string {
	return sharedProperties(controller) + fmt.Sprintf(`process.roles=broker,controller
listeners=PLAINTEXT://127.0.0.1:%[1]d,CONTROLLER://127.0.0.1:%[2]d
advertised.listeners=PLAINTEXT://127.0.0.1:%[1]d

# One broker: one copy of everything.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Each partition of the two is loaded at a start. One process has few groups and few transactional ids.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4

# The members of a group here come one after another, each of them at once.
group.initial.rebalance.delay.ms=0

# Topics are made by who knows their settings. Their retention is set there too: without it nothing is deleted.
auto.create.topics.enable=false
log.retention.ms=-1
# Record times are times of events: those of a made-up world may lie in the future.
log.message.timestamp.after.max.ms=9223372036854775807

# The default of the cleaner's buffer is half of the heap.
log.cleaner.dedupe.buffer.size=16777216

# One client host: the default of three and eight threads is for many.
num.network.threads=2
num.io.threads=4
`, port, controller)
}

// logging is log4j2.properties: what is worth a look goes to a file of bounded size.
func logging(folder string) string {
	return fmt.Sprintf(`status = ERROR
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = %[1]s/%[2]s
appender.file.filePattern = %[1]s/%[2]s.%%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %%d{yyyy-MM-dd'T'HH:mm:ss.SSS} %%p %%c{1.} %%m%%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = WARN
rootLogger.appenderRef.file.ref = file
`, folder, LogFile)
}
