<?php
// Workers that count together in System V shared memory under a semaphore.
$key = 0x41505301;
$lock = sem_get($key);
sem_acquire($lock);
$memory = shm_attach($key, 65536);
$count = shm_has_var($memory, 1) ? shm_get_var($memory, 1) : 0;
$words = shm_has_var($memory, 2) ? shm_get_var($memory, 2) : [];
if ($_SERVER['QUERY_STRING'] === 'add') {
    $count++;
    $words[$count % 50] = sha1($count);
    shm_put_var($memory, 1, $count);
    shm_put_var($memory, 2, $words);
}
sem_release($lock);
$cached = opcache_get_status(true)['scripts'][__FILE__]['timestamp'] ?? 'not cached';
echo $_SERVER['QUERY_STRING'] === 'who' ? getmypid() : "$count " . sha1(implode(',', $words)) . " $cached";
