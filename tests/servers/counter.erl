%% A counter as an Erlang system has it: the count is the state of a process, 10,000 others
%% hold a term each, a table has what they said, a timer ticks.
-module(counter).
-export([start/1]).

start([Port]) ->
    Table = ets:new(said, [public]),
    Holders = [spawn(fun() -> hold({N, <<N:64>>}) end) || N <- lists:seq(1, 10000)],
    Count = spawn(fun() -> count(0) end),
    Ticks = spawn(fun() -> tick(0) end),
    timer:send_interval(10, Ticks, tick),
    Options = [binary, {packet, http_bin}, {active, false}, {reuseaddr, true}, {ip, {127, 0, 0, 1}}],
    {ok, Listener} = gen_tcp:listen(list_to_integer(Port), Options),
    accept(Listener, {Table, Holders, Count, Ticks}).

accept(Listener, State) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> receive go -> serve(Socket, State) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener, State).

serve(Socket, State) ->
    {ok, {http_request, 'GET', {abs_path, Path}, _}} = gen_tcp:recv(Socket, 0),
    gen_tcp:send(Socket, ["HTTP/1.0 200 OK\r\n\r\n", answer(Path, State)]),
    gen_tcp:close(Socket).

answer(<<"/add">>, State = {Table, _, Count, _}) ->
    N = ask(Count, add),
    ets:insert(Table, {N, erlang:phash2(N)}),
    answer(<<"/">>, State);
answer(<<"/ticks">>, {_, _, _, Ticks}) ->
    integer_to_binary(ask(Ticks, get));
answer(_, {Table, Holders, Count, _}) ->
    [Holder ! {self(), get} || Holder <- Holders],
    Held = lists:sort([receive {Holder, Term} -> Term end || Holder <- Holders]),
    Said = lists:sort(ets:tab2list(Table)),
    io_lib:format("~b ~b ~b", [ask(Count, get), erlang:phash2(Held), erlang:phash2(Said)]).

ask(Pid, What) ->
    Pid ! {self(), What},
    receive {Pid, Answer} -> Answer end.

hold(Term) ->
    receive {From, get} -> From ! {self(), Term} end,
    hold(Term).

count(N) ->
    receive
        {From, add} -> From ! {self(), N + 1}, count(N + 1);
        {From, get} -> From ! {self(), N}, count(N)
    end.

tick(N) ->
    receive
        tick -> tick(N + 1);
        {From, get} -> From ! {self(), N}, tick(N)
    end.
