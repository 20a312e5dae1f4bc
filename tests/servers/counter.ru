# A Rack application in two processes with threads: they count together in a file under a
# lock, and each has a word of its own in memory.
DIR = ENV.fetch('COUNTER_DIR')
WORDS = Hash.new { |words, pid| words[pid] = Random.bytes(8).unpack1('H*') }
$ticks = 0
LOCK = Mutex.new

def ticking
  LOCK.synchronize { @ticking ||= Thread.new { loop { sleep 0.01; $ticks += 1 } } }
end

def count(more)
  File.open("#{DIR}/count", File::RDWR | File::CREAT) do |file|
    file.flock(File::LOCK_EX)
    number = file.read.to_i + more
    file.rewind
    file.write(number)
    number
  end
end

run lambda { |env|
  ticking
  body = case env['PATH_INFO']
         when '/add' then count(1)
         when '/ticks' then $ticks
         when '/who' then LOCK.synchronize { "#{Process.pid}-#{WORDS[Process.pid]}" }
         else count(0)
         end
  [200, { 'content-type' => 'text/plain' }, [body.to_s]]
}
